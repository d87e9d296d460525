from kfp import dsl

from vlmflow.runtime.step import step


@step(passes_on=True)
def ground(
    start: dsl.Input[dsl.Model],
    conversations: dsl.Input[dsl.Dataset],
    recipe: str,
    model: dsl.Output[dsl.Model],
    section: str = "ground",
):
    """Fine-tune to locate a phrase with a box, with replay of earlier tasks."""
    from vlmflow.training.finetuning.stage import run_stage

    run_stage(start.path, conversations.path, model.path, recipe, section)
