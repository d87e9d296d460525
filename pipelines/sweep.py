"""A family trained with every combination of some values, side by side."""

from kfp import dsl

from components.curate.component import curate
from components.evaluate.component import evaluate
from components.ingest.component import ingest
from components.instructions.component import instructions
from components.pretrain.component import pretrain
from components.sweep.component import sweep as combinations
from components.validate.component import validate
from pipelines.flow import flow, shipped


@flow
def sweep(recipe: str = shipped("sweep")):
    """A family of the zoo, trained with every combination of some values, side by side on the same pairs.

    1. Ingest raw pairs, curate them, and validate what is left.
    2. List the combinations, and refuse the sweep if one is impossible.
    3. For each: pretrain the family, and evaluate it on the same held-out pairs.

    MLflow's page of the experiment compares them: a row for each, with what was varied and what came of it.

    Args:
        recipe: every value of the run, as YAML: a section for each step. `sweep.grid` says what is varied, and
            `pretrain` what is not. The default is recipes/sweep.yaml.
    """
    settings = combinations(recipe=recipe).output
    raw = ingest(recipe=recipe).set_display_name("ingest").outputs["raw"]
    pairs = curate(raw=raw, recipe=recipe).outputs["curated"]
    kept = validate(data=pairs, recipe=recipe, section="validate_curated")
    questions = instructions(pairs=pairs, recipe=recipe).after(kept).outputs["conversations"]
    with dsl.ParallelFor(settings, name="settings") as setting:
        model = pretrain(pairs=pairs, conversations=questions, recipe=recipe, stage=setting, change=setting)
        evaluate(model=model.outputs["model"], pairs=pairs, conversations=questions, stage=setting, recipe=recipe)
