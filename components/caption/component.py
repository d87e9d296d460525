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
    from pathlib import Path

    from vlmflow.training.sft_config import stage

    stage(
        model_in=Path(start.path),
        conversations=Path(conversations.path),
        out=Path(model.path),
        recipe=recipe,
        section=section,
    )
