from kfp import dsl

from vlmflow.runtime.step import step


@step
def pretrain(
    pairs: dsl.Input[dsl.Dataset],
    conversations: dsl.Input[dsl.Dataset],
    recipe: str,
    model: dsl.Output[dsl.Model],
    section: str = "pretrain",
    stage: str = "contrastive",  # what a pipeline of several calls each of them
    change: str = "",  # values of the section that a sweep replaces, as JSON
):
    """Pretrain a family of the zoo on images and their captions."""
    from pathlib import Path

    from vlmflow.config.recipes import changed, load, parse
    from vlmflow.training.pretraining.config import PretrainConfig
    from vlmflow.training.pretraining.training import pretrain as run

    run(
        pairs=Path(pairs.path),
        conversations=Path(conversations.path),
        out=Path(model.path),
        section=load(PretrainConfig, changed(parse(recipe), section, change), section),
    )
