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
    """Make the version a KServe endpoint, on this machine or in a cluster, and try it with a real picture."""
    from pathlib import Path

    from components.deploy.deployment import DeployConfig, deploy
    from vlmflow.config.recipes import load
    from vlmflow.runtime.step import image

    deploy(
        Path(model.path),
        Path(version.path),
        Path(pairs.path),
        Path(manifest.path),
        Path(transcript.path),
        image("serve"),
        load(DeployConfig, recipe, section),
    )
