from kfp import dsl

from vlmflow.runtime.step import step


@step(passes_on=True, optional_inputs="preferences")
def align(
    start: dsl.Input[dsl.Model],
    preferences: dsl.Input[dsl.Dataset],
    recipe: str,
    model: dsl.Output[dsl.Model],
    control: dsl.Output[dsl.Model],
    section: str = "align",
):
    """Align with DPO on preference pairs, and fine-tune an SFT control on the chosen answers."""
    from components.align.alignment import align as run

    run(start.path, preferences.path, model.path, control.path, recipe, section)
