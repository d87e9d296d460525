from kfp import dsl

from vlmflow.runtime.step import step


@step(passes_on=True)
def ocr(
    start: dsl.Input[dsl.Model],
    conversations: dsl.Input[dsl.Dataset],
    recipe: str,
    model: dsl.Output[dsl.Model],
    section: str = "ocr",
):
    """Fine-tune to transcribe a line of text, with replay of earlier tasks."""
    from vlmflow.training.finetuning.stage import run_stage

    run_stage(start.path, conversations.path, model.path, recipe, section)
