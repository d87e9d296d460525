from kfp import dsl

from components.step import step


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

    from components.champion.reigning import take
    from components.recipe import load
    from components.register.registration import Registration

    take(load(Registration, recipe, section).name, Path(model.path), Path(scores.path), Path(version.path))
