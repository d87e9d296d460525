from kfp import dsl

from vlmflow.runtime.step import step


@step(reads_sources=True)
def ingest(recipe: str, raw: dsl.Output[dsl.Dataset], section: str = "ingest"):
    """Read images and texts from any source into pairs; unusable rows go to the quarantine with a reason."""
    from pathlib import Path

    from components.ingest.config import IngestConfig
    from components.ingest.ingestion import ingest as run
    from vlmflow.config.recipes import load

    run(load(IngestConfig, recipe, section), Path(raw.path))
