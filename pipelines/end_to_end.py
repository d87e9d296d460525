"""The whole life of a vision-language model, raw pairs to a served, preference-aligned model."""

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
from pipelines.flow import flow, shipped


def train_and_release(raw, pairs, ledger, funnel, questions, recipe):
    """What follows once there are data: training, gate, endpoint, report."""
    validated = validate(data=questions, recipe=recipe, section="validate_instructions")

    def measure(stage: str, model):
        """Evaluate `model` after `stage`."""
        task = evaluate(model=model, pairs=pairs, conversations=questions, stage=stage, recipe=recipe)
        return task.set_display_name(f"evaluate {stage}").outputs["scores"]

    pretrained = pretrain(pairs=pairs, conversations=questions, recipe=recipe).after(validated)
    contrastive = pretrained.outputs["model"]
    contrastive_scores = measure("contrastive", contrastive)
    captioner = caption(start=contrastive, conversations=questions, recipe=recipe).outputs["model"]
    caption_scores = measure("caption", captioner)
    grounded = ground(start=captioner, conversations=questions, recipe=recipe).outputs["model"]
    ground_scores = measure("ground", grounded)
    reader = ocr(start=grounded, conversations=questions, recipe=recipe).outputs["model"]
    ocr_scores = measure("ocr", reader)

    pairs_of_answers = preferences(model=reader, conversations=questions, recipe=recipe).outputs["preferences"]
    preferred = validate(data=pairs_of_answers, recipe=recipe, section="validate_preferences")
    aligned = align(start=reader, preferences=pairs_of_answers, recipe=recipe).after(preferred)
    aligned_scores = measure("align", aligned.outputs["model"])
    control_scores = measure("control", aligned.outputs["control"])

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
        preferences=pairs_of_answers,
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
def end_to_end(recipe: str = shipped("demo")):
    """The whole life of a vision-language model: raw image-text pairs in, a served model out.

    1. Ingest raw pairs and validate them.
    2. Curate them, a verdict for every pair, and validate what is left; make the task sets, and validate those.
    3. Pretrain by contrast, then a language model on captions.
    4. Teach it to ground phrases, then to read lines.
    5. Collect preferences against its own mistakes, validate them, and align it; train the control.
    6. Evaluate after every stage.
    7. Gate: keep the aligned model or the one before it.
    8. Register the choice, deploy it and try the endpoint.
    9. Report.

    Args:
        recipe: every value of the run, as YAML: a section for each step. A section that is `null` or missing
            leaves its step out. The default is recipes/demo.yaml.
    """
    raw = ingest(recipe=recipe).set_display_name("ingest").outputs["raw"]
    checked = validate(data=raw, recipe=recipe, section="validate_raw")
    made = curate(raw=raw, recipe=recipe).after(checked)
    pairs = made.outputs["curated"]
    kept = validate(data=pairs, recipe=recipe, section="validate_curated")
    questions = instructions(pairs=pairs, recipe=recipe).after(kept).outputs["conversations"]
    train_and_release(raw, pairs, made.outputs["ledger"], made.outputs["funnel"], questions, recipe)


@flow
def train(recipe: str = shipped("demo"), data_rev: str = "HEAD"):
    """The life of a model on the data of a revision, exactly as they were versioned: none are made.

    1. Fetch raw and curated pairs, ledger and task sets from DVC, and validate the task sets.
    2. From there on as `end-to-end`: training, evaluation, gate, registration, endpoint, report.

    Args:
        recipe: every value of the run, as YAML: a section for each step. `fetch.repo` says where the data are, an
            address that the cluster can read. The default is recipes/demo.yaml.
        data_rev: a commit, a tag or a branch of that repository; HEAD is its default branch as it is now.
    """
    data = fetch(recipe=recipe, data_rev=data_rev).outputs
    train_and_release(data["raw"], data["curated"], data["ledger"], data["funnel"], data["conversations"], recipe)
