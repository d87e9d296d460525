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
    from vlmflow.training.finetuning.stage import run_stage

    run_stage(start.path, conversations.path, model.path, recipe, section)
