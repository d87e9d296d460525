from kfp import dsl

from vlmflow.runtime.step import step


@step
def tasks(pairs: dsl.Input[dsl.Dataset], recipe: str, conversations: dsl.Output[dsl.Dataset], section: str = "tasks"):
    """Turn pairs into questions and answers: captions, objects, boxes, yes or no, lines of text."""
    from pathlib import Path

    from components.instructions.conversations import Tasks, make
    from vlmflow.config.recipes import load

    make(Path(pairs.path), Path(conversations.path), load(Tasks, recipe, section))
