from kfp import dsl

from vlmflow.runtime.step import step


@step
def ingest(recipe: str, raw: dsl.Output[dsl.Dataset], section: str = "ingest"):
    """Read pictures and texts from any source into pairs; what cannot be used goes to a quarantine with its reason."""
    from pathlib import Path

    from components.ingest.config import IngestConfig
    from components.ingest.ingestion import ingest as run
    from vlmflow.config.recipes import load

    run(load(IngestConfig, recipe, section), Path(raw.path))
