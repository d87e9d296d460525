from kfp import dsl

from vlmflow.runtime.step import step


# fmt: off
@step
def data_ablation(
    ledger: dsl.Input[dsl.Artifact],
    raw: dsl.Input[dsl.Artifact], pictures: dsl.Input[dsl.Artifact], captions: dsl.Input[dsl.Artifact],
    repeats: dsl.Input[dsl.Artifact], score: dsl.Input[dsl.Artifact], diversity: dsl.Input[dsl.Artifact],
    recipe: str, returns: dsl.Output[dsl.Artifact], page: dsl.Output[dsl.HTML], section: str = "data_ablation",
):
    """Say what each stage of curation bought, by models trained alike on what it left, and what it cost."""
    from pathlib import Path

    from components.data_ablation.config import DataAblationConfig
    from components.data_ablation.gains import write_gains
    from vlmflow.config.recipes import load

    scores = {"raw": raw, "pictures": pictures, "captions": captions, "repeats": repeats, "score": score,
              "diversity": diversity}
    places = {stage: Path(artifact.path) for stage, artifact in scores.items()}
    write_gains(places, Path(ledger.path), Path(returns.path), Path(page.path), load(DataAblationConfig, recipe, section))
