from kfp import dsl

from vlmflow.runtime.step import step


@step(whole_recipe=True, uses_registry=True)
def register(
    model: dsl.Input[dsl.Model],
    scores: dsl.Input[dsl.Artifact],
    verdict: dsl.Input[dsl.Artifact],
    recipe: str,
    version: dsl.Output[dsl.Artifact],
    section: str = "register",
):
    """Register the model as a version in the MLflow registry: champion, or challenger with the reasons."""
    from pathlib import Path

    from components.register.registration import register
    from vlmflow.config.recipes import load
    from vlmflow.runtime.container_image import revision
    from vlmflow.tracking.registry import RegistryConfig

    register(
        Path(model.path),
        Path(scores.path),
        Path(verdict.path),
        Path(version.path),
        recipe,
        load(RegistryConfig, recipe, section),
        revision(),
    )
