"""Curation as a pipeline step."""

from kfp import dsl

from vlmflow.runtime.step import step


@step
def curate(
    raw: dsl.Input[dsl.Dataset],
    recipe: str,
    curated: dsl.Output[dsl.Dataset],
    ledger: dsl.Output[dsl.Artifact],
    funnel: dsl.Output[dsl.HTML],
    scorer: dsl.Output[dsl.Model],
    section: str = "curate",
):
    """Keep the pairs that are worth training on, and write a verdict for every pair."""
    from pathlib import Path

    from components.curate.config import CurateConfig
    from components.curate.curation import curate as run
    from vlmflow.config.recipes import load

    run(
        Path(raw.path),
        Path(curated.path),
        Path(ledger.path),
        Path(funnel.path),
        Path(scorer.path),
        load(CurateConfig, recipe, section),
    )
