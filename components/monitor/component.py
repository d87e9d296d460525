from kfp import dsl

from vlmflow.runtime.step import step


@step
def monitor(
    scores: dsl.Input[dsl.Artifact],
    registered: dsl.Input[dsl.Artifact],
    version: dsl.Input[dsl.Artifact],
    recipe: str,
    finding: dsl.Output[dsl.Artifact],
    page: dsl.Output[dsl.Markdown],
    section: str = "monitor",
):
    """Compare the champion on new data with its scores at registration; fail if a capability got worse."""
    from pathlib import Path

    from components.monitor.regression import compare_with_registration
    from vlmflow.config.recipes import load
    from vlmflow.evaluation.config import GateConfig

    compare_with_registration(
        now=Path(scores.path),
        registered=Path(registered.path),
        version=Path(version.path),
        finding=Path(finding.path),
        page=Path(page.path),
        section=load(GateConfig, recipe, section),
    )
