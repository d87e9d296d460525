from kfp import dsl

from vlmflow.runtime.step import step


@step
def caption(
    start: dsl.Input[dsl.Model],
    conversations: dsl.Input[dsl.Dataset],
    recipe: str,
    model: dsl.Output[dsl.Model],
    section: str = "caption",
):
    """Grow a language model from the dual encoder and teach it to describe pictures and to name what is there."""
    from vlmflow.training.finetuning.stage import run_stage

    run_stage(start.path, conversations.path, model.path, recipe, section)
