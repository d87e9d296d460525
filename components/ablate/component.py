from kfp import dsl

from vlmflow.runtime.step import step


@step
def ablate(
    raw: dsl.Input[dsl.Dataset],
    ledger: dsl.Input[dsl.Artifact],
    pairs: dsl.Output[dsl.Dataset],
    stage: str,
):
    """Take the training pairs that were left after a stage of curation, as its ledger tells."""
    from pathlib import Path

    from components.ablate.ablation import survivors_after_stage

    survivors_after_stage(stage, Path(raw.path), Path(ledger.path), Path(pairs.path))
