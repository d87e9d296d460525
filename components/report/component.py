from kfp import dsl

from vlmflow.runtime.step import step


# fmt: off
@step(whole_recipe=True, optional_inputs="verdict,version,transcript")
def report(
    raw: dsl.Input[dsl.Dataset], curated: dsl.Input[dsl.Dataset], conversations: dsl.Input[dsl.Dataset],
    preferences: dsl.Input[dsl.Dataset], ledger: dsl.Input[dsl.Artifact], funnel: dsl.Input[dsl.HTML],
    contrastive: dsl.Input[dsl.Model], contrastive_scores: dsl.Input[dsl.Artifact],
    caption: dsl.Input[dsl.Model], caption_scores: dsl.Input[dsl.Artifact],
    ground: dsl.Input[dsl.Model], ground_scores: dsl.Input[dsl.Artifact],
    ocr: dsl.Input[dsl.Model], ocr_scores: dsl.Input[dsl.Artifact],
    aligned: dsl.Input[dsl.Model], aligned_scores: dsl.Input[dsl.Artifact],
    control: dsl.Input[dsl.Model], control_scores: dsl.Input[dsl.Artifact],
    verdict: dsl.Input[dsl.Artifact], version: dsl.Input[dsl.Artifact], transcript: dsl.Input[dsl.Artifact],
    recipe: str, report: dsl.Output[dsl.HTML], section: str = "report",
):
    """Write one HTML page about the run: data, stages, answers, lineage and shortcomings."""
    from pathlib import Path

    from components.report.artifacts import ArtifactPaths
    from components.report.config import ReportConfig
    from components.report.page import render
    from vlmflow.config.recipes import load

    inputs = {
        "raw": raw, "curated": curated, "conversations": conversations, "preferences": preferences,
        "ledger": ledger, "funnel": funnel, "verdict": verdict, "version": version, "transcript": transcript,
        "contrastive": contrastive, "contrastive_scores": contrastive_scores,
        "caption": caption, "caption_scores": caption_scores, "ground": ground, "ground_scores": ground_scores,
        "ocr": ocr, "ocr_scores": ocr_scores, "aligned": aligned, "aligned_scores": aligned_scores,
        "control": control, "control_scores": control_scores,
    }
    paths = ArtifactPaths(**{name: Path(artifact.path) for name, artifact in inputs.items()})
    render(paths, Path(report.path), recipe, load(ReportConfig, recipe, section))
