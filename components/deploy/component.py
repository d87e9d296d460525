from kfp import dsl

from vlmflow.runtime.step import step


@step
def deploy(
    model: dsl.Input[dsl.Model],
    version: dsl.Input[dsl.Artifact],
    pairs: dsl.Input[dsl.Dataset],
    recipe: str,
    manifest: dsl.Output[dsl.Artifact],
    transcript: dsl.Output[dsl.Artifact],
    section: str = "deploy",
):
    """Deploy a model version as a KServe endpoint, on this machine or in a cluster, and test it with a real image."""
    from pathlib import Path

    from components.deploy.deployment import DeployConfig, deploy
    from vlmflow.config.recipes import load
    from vlmflow.runtime.container_image import image_name

    deploy(
        Path(model.path),
        Path(version.path),
        Path(pairs.path),
        Path(manifest.path),
        Path(transcript.path),
        image_name("serve"),
        load(DeployConfig, recipe, section),
    )
