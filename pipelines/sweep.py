"""Hyperparameter sweep: train a family with every combination of the given values, in parallel."""

from kfp import dsl

from components.curate.component import curate
from components.evaluate.component import evaluate
from components.ingest.component import ingest
from components.instructions.component import instructions
from components.pretrain.component import pretrain
from components.sweep.component import sweep as combinations
from components.validate.component import validate
from pipelines.flow import default_recipe, flow


@flow
def sweep(recipe: str = default_recipe("sweep")):
    """Train a family of the zoo with every combination of the given values, in parallel, on the same pairs.

    1. Ingest raw pairs, curate them, and validate the kept pairs.
    2. List the combinations; fail if one of them is invalid.
    3. For each: pretrain the family, and evaluate it on the same held-out pairs.

    MLflow's experiment page compares them, one row each with its values and scores.

    Args:
        recipe: the configuration of the run, as YAML: a section for each step. `sweep.grid` lists the varied values,
            `pretrain` holds the fixed ones. The default is recipes/sweep.yaml.
    """
    settings = combinations(recipe=recipe).output
    raw = ingest(recipe=recipe).set_display_name("ingest").outputs["raw"]
    pairs = curate(raw=raw, recipe=recipe).outputs["curated"]
    kept = validate(data=pairs, recipe=recipe, section="validate_curated")
    questions = instructions(pairs=pairs, recipe=recipe).after(kept).outputs["conversations"]
    with dsl.ParallelFor(settings, name="settings") as setting:
        model = pretrain(pairs=pairs, conversations=questions, recipe=recipe, stage=setting, change=setting)
        evaluate(
            model=model.outputs["model"],
            pairs=pairs,
            conversations=questions,
            stage=setting,
            recipe=recipe,
            earlier=questions,
        )
