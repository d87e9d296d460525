from kfp import dsl

from vlmflow.runtime.step import step


@step
def ablate(
    raw: dsl.Input[dsl.Dataset],
    ledger: dsl.Input[dsl.Artifact],
    pairs: dsl.Output[dsl.Dataset],
    stage: str,
):
    """Select the training pairs that remain after a stage of curation, by its ledger."""
    from pathlib import Path

    from components.ablate.ablation import survivors_after_stage

    survivors_after_stage(stage, Path(raw.path), Path(ledger.path), Path(pairs.path))
