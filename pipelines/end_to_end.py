"""The end-to-end pipeline: from raw image-text pairs to a served, preference-aligned model."""

from components.align.component import align
from components.caption.component import caption
from components.curate.component import curate
from components.deploy.component import deploy
from components.evaluate.component import evaluate
from components.fetch.component import fetch
from components.gate.component import gate
from components.ground.component import ground
from components.ingest.component import ingest
from components.instructions.component import instructions
from components.ocr.component import ocr
from components.preferences.component import preferences
from components.pretrain.component import pretrain
from components.register.component import register
from components.report.component import report
from components.validate.component import validate
from pipelines.flow import default_recipe, flow


def train_and_release(raw, pairs, ledger, funnel, questions, recipe):
    """Training, evaluation, gate, registration, deployment and report; common to `end_to_end` and `train`."""
    validated = validate(data=questions, recipe=recipe, section="validate_instructions")

    def measure(stage: str, model, earlier):
        """Evaluate `model` after `stage`, unless it is the model with the scores `earlier`."""
        task = evaluate(model=model, pairs=pairs, conversations=questions, stage=stage, recipe=recipe, earlier=earlier)
        return task.set_display_name(f"evaluate {stage}").outputs["scores"]

    pretrained = pretrain(pairs=pairs, conversations=questions, recipe=recipe).after(validated)
    contrastive = pretrained.outputs["model"]
    contrastive_scores = measure("contrastive", contrastive, questions)
    captioner = caption(start=contrastive, conversations=questions, recipe=recipe).outputs["model"]
    caption_scores = measure("caption", captioner, contrastive_scores)
    grounded = ground(start=captioner, conversations=questions, recipe=recipe).outputs["model"]
    ground_scores = measure("ground", grounded, caption_scores)
    reader = ocr(start=grounded, conversations=questions, recipe=recipe).outputs["model"]
    ocr_scores = measure("ocr", reader, ground_scores)

    preference_pairs = preferences(model=reader, conversations=questions, recipe=recipe).outputs["preferences"]
    preferred = validate(data=preference_pairs, recipe=recipe, section="validate_preferences")
    aligned = align(start=reader, preferences=preference_pairs, recipe=recipe).after(preferred)
    aligned_scores = measure("align", aligned.outputs["model"], ocr_scores)
    control_scores = measure("control", aligned.outputs["control"], ocr_scores)

    decision = gate(
        candidate=aligned.outputs["model"],
        candidate_scores=aligned_scores,
        fallback=reader,
        fallback_scores=ocr_scores,
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
    served = deploy(model=decision.outputs["chosen"], version=version, pairs=pairs, recipe=recipe)
    report(
        raw=raw,
        curated=pairs,
        ledger=ledger,
        funnel=funnel,
        conversations=questions,
        contrastive=contrastive,
        contrastive_scores=contrastive_scores,
        caption=captioner,
        caption_scores=caption_scores,
        ground=grounded,
        ground_scores=ground_scores,
        ocr=reader,
        ocr_scores=ocr_scores,
        preferences=preference_pairs,
        aligned=aligned.outputs["model"],
        aligned_scores=aligned_scores,
        control=aligned.outputs["control"],
        control_scores=control_scores,
        verdict=decision.outputs["verdict"],
        version=version,
        transcript=served.outputs["transcript"],
        recipe=recipe,
    )


@flow
def end_to_end(recipe: str = default_recipe("demo")):
    """Train, align and deploy a vision-language model: raw image-text pairs in, a served model out.

    1. Ingest raw pairs and validate them.
    2. Curate them, with a verdict for every pair; build conversations for each task; validate both.
    3. Pretrain a dual encoder, then a language model on captions.
    4. Fine-tune it to ground phrases, then to read lines of text.
    5. Collect preference pairs from its own mistakes, validate them, and align it with DPO; train the SFT control.
    6. Evaluate after every stage.
    7. Gate: keep the aligned model or the one before it.
    8. Register the chosen model, deploy it and smoke-test the endpoint.
    9. Write the report.

    Args:
        recipe: the configuration of the run, as YAML: a section for each step. A step whose section is `null` is left
            out, with every step that needs its result. The default is recipes/demo.yaml.
    """
    raw = ingest(recipe=recipe).set_display_name("ingest").outputs["raw"]
    checked = validate(data=raw, recipe=recipe, section="validate_raw")
    made = curate(raw=raw, recipe=recipe).after(checked)
    pairs = made.outputs["curated"]
    kept = validate(data=pairs, recipe=recipe, section="validate_curated")
    questions = instructions(pairs=pairs, recipe=recipe).after(kept).outputs["conversations"]
    train_and_release(raw, pairs, made.outputs["ledger"], made.outputs["funnel"], questions, recipe)


@flow
def train(recipe: str = default_recipe("demo"), data_rev: str = "HEAD"):
    """Train, align and deploy a model on the data of a DVC revision, exactly as they were versioned.

    1. Fetch raw and curated pairs, ledger and conversations from DVC, and validate the conversations.
    2. Continue as `end-to-end`: training, evaluation, gate, registration, deployment, report.

    Args:
        recipe: the configuration of the run, as YAML: a section for each step. `fetch.repo` is the address of the
            data's repository, which the cluster must be able to read. The default is recipes/demo.yaml.
        data_rev: a commit, tag or branch of that repository; HEAD is the tip of its default branch.
    """
    data = fetch(recipe=recipe, data_rev=data_rev).outputs
    train_and_release(data["raw"], data["curated"], data["ledger"], data["funnel"], data["conversations"], recipe)
