from kfp import dsl

from vlmflow.runtime.step import step


@step
def champion(
    recipe: str,
    model: dsl.Output[dsl.Model],
    scores: dsl.Output[dsl.Artifact],
    version: dsl.Output[dsl.Artifact],
    section: str = "champion",
):
    """Take the champion out of the registry, with the scores that it was registered with."""
    from pathlib import Path

    from components.champion.load import load_champion
    from vlmflow.config.recipes import load
    from vlmflow.tracking.registry import RegistryConfig

    load_champion(load(RegistryConfig, recipe, section).name, Path(model.path), Path(scores.path), Path(version.path))
