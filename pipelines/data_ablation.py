"""What each stage of curation returns: the same small model, trained alike on what every stage left."""

from components.ablate.component import ablate
from components.curate.component import curate
from components.data_ablation.component import data_ablation as compare_stages
from components.evaluate.component import evaluate
from components.ingest.component import ingest
from components.instructions.component import instructions
from components.pretrain.component import pretrain
from pipelines.flow import flow, shipped

STAGES = ("raw", "pictures", "captions", "repeats", "score", "diversity")


@flow
def data_ablation(recipe: str = shipped("data-ablation")):
    """What each stage of curation returns: the same small model, trained alike on what every stage left.

    1. Ingest raw pairs and curate them, once.
    2. For each stage, take from the ledger what was left after it.
    3. Pretrain the same model on it with the same compute.
    4. Evaluate all of them on the same held-out pairs.
    5. Compare them, and put the cost beside it.

    Args:
        recipe: every value of the run, as YAML: a section for each step. The default is recipes/data-ablation.yaml.
    """
    raw = ingest(recipe=recipe).set_display_name("ingest").outputs["raw"]
    curated = curate(raw=raw, recipe=recipe)
    pairs, ledger = curated.outputs["curated"], curated.outputs["ledger"]
    questions = instructions(pairs=pairs, recipe=recipe).outputs["conversations"]
    scores = {}
    # Not dsl.ParallelFor: kfp.local cannot collect from it. On a cluster these branches run side by side all the same.
    for stage in STAGES:
        left = ablate(raw=raw, ledger=ledger, stage=stage).outputs["pairs"]
        model = pretrain(pairs=left, conversations=questions, recipe=recipe, stage=stage).outputs["model"]
        measured = evaluate(model=model, pairs=pairs, conversations=questions, stage=stage, recipe=recipe)
        scores[stage] = measured.set_display_name(f"evaluate {stage}").outputs["scores"]
    compare_stages(ledger=ledger, recipe=recipe, **scores)
