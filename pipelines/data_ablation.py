"""Data ablation: measure what each stage of curation gains, with one model trained on each stage's survivors."""

from components.ablate.component import ablate
from components.curate.component import curate
from components.data_ablation.component import data_ablation as compare_stages
from components.evaluate.component import evaluate
from components.ingest.component import ingest
from components.instructions.component import instructions
from components.pretrain.component import pretrain
from pipelines.flow import default_recipe, flow

STAGES = ("raw", "images", "captions", "duplicates", "score", "diversity")


@flow
def data_ablation(recipe: str = default_recipe("data-ablation")):
    """Measure the gain of each stage of curation: one small model, trained on the pairs that survive each stage.

    1. Ingest raw pairs and curate them, once.
    2. For each stage, select the pairs that survived it, from the ledger.
    3. Pretrain the same model on them with the same compute.
    4. Evaluate all models on the same held-out pairs.
    5. Compare gains and costs.

    Args:
        recipe: the configuration of the run, as YAML: a section for each step. The default is
            recipes/data-ablation.yaml.
    """
    raw = ingest(recipe=recipe).set_display_name("ingest").outputs["raw"]
    curated = curate(raw=raw, recipe=recipe)
    pairs, ledger = curated.outputs["curated"], curated.outputs["ledger"]
    questions = instructions(pairs=pairs, recipe=recipe).outputs["conversations"]
    scores = {}
    # Not dsl.ParallelFor: kfp.local has no dsl.Collected. On a cluster the branches run in parallel anyway.
    for stage in STAGES:
        left = ablate(raw=raw, ledger=ledger, stage=stage).outputs["pairs"]
        model = pretrain(pairs=left, conversations=questions, recipe=recipe, stage=stage).outputs["model"]
        measured = evaluate(
            model=model, pairs=pairs, conversations=questions, stage=stage, recipe=recipe, earlier=questions
        )
        scores[stage] = measured.set_display_name(f"evaluate {stage}").outputs["scores"]
    compare_stages(ledger=ledger, recipe=recipe, **scores)
