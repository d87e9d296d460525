from kfp import dsl

from vlmflow.runtime.step import step


@step(passes_on=True)
def instructions(
    pairs: dsl.Input[dsl.Dataset], recipe: str, conversations: dsl.Output[dsl.Dataset], section: str = "instructions"
):
    """Build conversations from pairs: captions, objects, boxes, yes-or-no questions, lines of text."""
    from pathlib import Path

    from components.instructions.config import InstructionConfig
    from components.instructions.conversations import build_conversations, write_empty
    from vlmflow.config import recipes

    if recipes.is_null(recipe, section):
        reason = f"the section {section!r} of the recipe is null"
        write_empty(Path(pairs.path), Path(conversations.path), reason)
    else:
        config = recipes.load(InstructionConfig, recipe, section)
        build_conversations(Path(pairs.path), Path(conversations.path), config)
