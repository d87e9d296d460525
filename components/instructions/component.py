from kfp import dsl

from vlmflow.runtime.step import step


@step
def instructions(
    pairs: dsl.Input[dsl.Dataset], recipe: str, conversations: dsl.Output[dsl.Dataset], section: str = "instructions"
):
    """Build conversations from pairs: captions, objects, boxes, yes-or-no questions, lines of text."""
    from pathlib import Path

    from components.instructions.config import InstructionConfig
    from components.instructions.conversations import build_conversations
    from vlmflow.config.recipes import load

    build_conversations(Path(pairs.path), Path(conversations.path), load(InstructionConfig, recipe, section))
