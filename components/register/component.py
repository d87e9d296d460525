from kfp import dsl

from components.step import step


@step
def register(
    model: dsl.Input[dsl.Model],
    scores: dsl.Input[dsl.Artifact],
    verdict: dsl.Input[dsl.Artifact],
    recipe: str,
    version: dsl.Output[dsl.Artifact],
    section: str = "register",
):
    """Make the model a version in the MLflow registry: champion, or challenger with the reasons."""
    from pathlib import Path

    from components.recipe import load
    from components.register.registration import Registration, register
    from components.step import revision

    register(
        Path(model.path),
        Path(scores.path),
        Path(verdict.path),
        Path(version.path),
        recipe,
        load(Registration, recipe, section),
        revision(),
    )
