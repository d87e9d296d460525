"""Pretrain one family of the zoo, and check that a family learns."""

from typing import Any

from components.curate.component import curate
from components.deploy.component import deploy
from components.evaluate.component import evaluate
from components.gate.component import gate
from components.ingest.component import ingest
from components.instructions.component import instructions
from components.learning_check.component import learning_check
from components.pretrain.component import pretrain
from components.register.component import register
from components.validate.component import validate
from pipelines.flow import default_recipe, flow
from vlmflow.config import recipes as recipes


@flow
def pretraining(recipe: str = default_recipe("zoo/clip")):
    """Pretrain and deploy one family of the zoo: raw pairs in, an endpoint out, no language-model stage.

    1. Ingest raw pairs and validate them.
    2. Curate them, and validate the kept pairs.
    3. Pretrain the family and evaluate it.
    4. Gate: decide whether it may become the champion.
    5. Register it, deploy it and smoke-test the endpoint.

    Args:
        recipe: the configuration of the run, as YAML: a section for each step; `pretrain.family` selects the family.
            The default is recipes/zoo/clip.yaml.
    """
    raw = ingest(recipe=recipe).set_display_name("ingest").outputs["raw"]
    checked = validate(data=raw, recipe=recipe, section="validate_raw")
    pairs = curate(raw=raw, recipe=recipe).after(checked).outputs["curated"]
    kept = validate(data=pairs, recipe=recipe, section="validate_curated")
    questions = instructions(pairs=pairs, recipe=recipe).after(kept).outputs["conversations"]
    model = pretrain(pairs=pairs, conversations=questions, recipe=recipe, stage="pretrain").outputs["model"]
    measured = evaluate(
        model=model, pairs=pairs, conversations=questions, stage="pretrain", recipe=recipe, earlier=questions
    )
    scores = measured.set_display_name("evaluate pretrain").outputs["scores"]
    decision = gate(
        candidate=model,
        candidate_scores=scores,
        fallback=model,
        fallback_scores=scores,
        pairs=pairs,
        conversations=questions,
        recipe=recipe,
    )
    version = register(
        model=decision.outputs["chosen"],
        scores=decision.outputs["scores"],
        verdict=decision.outputs["verdict"],
        recipe=recipe,
    ).outputs["version"]
    deploy(model=decision.outputs["chosen"], version=version, pairs=pairs, recipe=recipe)


VARIANTS = ("untrained", "trained", "shuffled")


def control_variants(sections: dict[str, Any], seconds: float | None = None) -> dict[str, Any]:
    """Return the recipe with section `pretrain` replaced by three variants: untrained, trained and shuffled."""
    pretrain = sections["pretrain"]
    budget = dict(pretrain.get("training", {}))
    if seconds is not None:
        budget = {**{key: value for key, value in budget.items() if key != "max_steps"}, "seconds": seconds}
    untrained = {key: value for key, value in budget.items() if key != "seconds"} | {"max_steps": 0}
    made = {"untrained": {"training": untrained}, "trained": {"training": budget}}
    made["shuffled"] = {"training": budget, "shuffle_pairs": True}
    left_out = ("pretrain", "gate", "register", "deploy", "pipeline")
    kept = {key: value for key, value in sections.items() if key not in left_out}
    return {**kept, "pipeline": "zoo-check", **{name: {**pretrain, **more} for name, more in made.items()}}


@flow
def zoo_check(recipe: str = recipes.dump(control_variants(recipes.parse(default_recipe("zoo/clip"))))):
    """Check that a family of the zoo learns: compare it with its untrained state and with a shuffled control.

    1. Ingest pairs and curate them.
    2. Pretrain three variants: untrained, trained, and trained on shuffled pairs.
    3. Evaluate all three on the same held-out pairs.
    4. Compare, and report whether it learned.

    Args:
        recipe: the configuration of the run, as YAML, with the sections `untrained`, `trained` and `shuffled`.
            The default is made from recipes/zoo/clip.yaml.
    """
    raw = ingest(recipe=recipe).set_display_name("ingest").outputs["raw"]
    pairs = curate(raw=raw, recipe=recipe).outputs["curated"]
    questions = instructions(pairs=pairs, recipe=recipe).outputs["conversations"]
    models, scores = {}, {}
    for variant in VARIANTS:
        begun = pretrain(pairs=pairs, conversations=questions, recipe=recipe, section=variant, stage=variant)
        models[variant] = begun.outputs["model"]
        measured = evaluate(
            model=models[variant], pairs=pairs, conversations=questions, stage=variant, recipe=recipe, earlier=questions
        )
        scores[variant] = measured.set_display_name(f"evaluate {variant}").outputs["scores"]
    learning_check(model=models["trained"], pairs=pairs, recipe=recipe, **scores)
