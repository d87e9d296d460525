from kfp import dsl

from vlmflow.runtime.step import step


@step(always_run=True)
def champion(
    recipe: str,
    model: dsl.Output[dsl.Model],
    scores: dsl.Output[dsl.Artifact],
    version: dsl.Output[dsl.Artifact],
    section: str = "champion",
):
    """Load the champion from the registry, with the scores it was registered with."""
    from pathlib import Path

    from components.champion.load import load_champion
    from vlmflow.config.recipes import load
    from vlmflow.tracking.registry import RegistryConfig

    load_champion(load(RegistryConfig, recipe, section).name, Path(model.path), Path(scores.path), Path(version.path))
