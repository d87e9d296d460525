from kfp import dsl

from components.step import step


@step
def pretrain(
    pairs: dsl.Input[dsl.Dataset],
    conversations: dsl.Input[dsl.Dataset],
    recipe: str,
    model: dsl.Output[dsl.Model],
    section: str = "contrastive",
    start: dsl.Input[dsl.Model] = None,  # type: ignore[assignment]  how KFP spells an optional artifact
):
    """Pretrain: pictures and captions into one space, then a language model that grows from the picture tower."""
    from pathlib import Path

    from components.pretrain.pretraining import Pretraining
    from components.pretrain.pretraining import pretrain as run
    from components.recipe import load

    run(
        pairs=Path(pairs.path),
        conversations=Path(conversations.path),
        model_in=Path(start.path) if start else None,
        out=Path(model.path),
        section=load(Pretraining, recipe, section),
    )
