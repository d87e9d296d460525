from kfp import dsl

from vlmflow.runtime.step import step


# fmt: off
@step
def data_ablation(
    ledger: dsl.Input[dsl.Artifact],
    raw: dsl.Input[dsl.Artifact], images: dsl.Input[dsl.Artifact], captions: dsl.Input[dsl.Artifact],
    duplicates: dsl.Input[dsl.Artifact], score: dsl.Input[dsl.Artifact], diversity: dsl.Input[dsl.Artifact],
    recipe: str, gains: dsl.Output[dsl.Artifact], page: dsl.Output[dsl.HTML], section: str = "data_ablation",
):
    """Compare models trained on the data after each stage of curation: gains and costs of the stages."""
    from pathlib import Path

    from components.data_ablation.config import DataAblationConfig
    from components.data_ablation.gains import write_gains
    from vlmflow.config.recipes import load

    scores = {"raw": raw, "images": images, "captions": captions, "duplicates": duplicates, "score": score,
              "diversity": diversity}
    folders = {stage: Path(artifact.path) for stage, artifact in scores.items()}
    config = load(DataAblationConfig, recipe, section)
    write_gains(folders, Path(ledger.path), Path(gains.path), Path(page.path), config)
