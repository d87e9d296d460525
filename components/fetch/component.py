from kfp import dsl

from vlmflow.runtime.step import step


@step(always_run=True)
def fetch(
    recipe: str,
    data_rev: str,
    raw: dsl.Output[dsl.Dataset],
    curated: dsl.Output[dsl.Dataset],
    ledger: dsl.Output[dsl.Artifact],
    funnel: dsl.Output[dsl.HTML],
    conversations: dsl.Output[dsl.Dataset],
    section: str = "fetch",
):
    """Fetch the data of a DVC revision, exactly as it was versioned, instead of creating it."""
    from pathlib import Path

    from components.fetch.config import FetchConfig
    from components.fetch.dvc import fetch as run
    from vlmflow.config.recipes import load

    outputs = {"raw": raw, "curated": curated, "ledger": ledger, "funnel": funnel, "conversations": conversations}
    run(load(FetchConfig, recipe, section), data_rev, {name: Path(output.path) for name, output in outputs.items()})
