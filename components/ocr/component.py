from kfp import dsl

from vlmflow.runtime.step import step


@step
def ocr(
    start: dsl.Input[dsl.Model],
    conversations: dsl.Input[dsl.Dataset],
    recipe: str,
    model: dsl.Output[dsl.Model],
    section: str = "ocr",
):
    """Fine-tune to read a line of text, and replay what was learned before."""
    from pathlib import Path

    from vlmflow.training.sft_config import stage

    stage(
        model_in=Path(start.path),
        conversations=Path(conversations.path),
        out=Path(model.path),
        recipe=recipe,
        section=section,
    )
