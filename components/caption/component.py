from kfp import dsl

from vlmflow.runtime.step import step


@step(passes_on=True)
def caption(
    start: dsl.Input[dsl.Model],
    conversations: dsl.Input[dsl.Dataset],
    recipe: str,
    model: dsl.Output[dsl.Model],
    section: str = "caption",
):
    """Build a language model on the dual encoder, and train it to caption images and to list their objects."""
    from vlmflow.training.finetuning.stage import run_stage

    run_stage(start.path, conversations.path, model.path, recipe, section)
