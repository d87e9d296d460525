"""Fine-tune a chat model on conversations from files, and align it with preference pairs from files."""

from components.align.component import align
from components.base_model.component import base_model
from components.caption.component import caption
from components.evaluate.component import evaluate
from components.gate.component import gate
from components.ingest.component import ingest
from components.register.component import register
from components.validate.component import validate
from pipelines.flow import default_recipe, flow


@flow
def finetuning(recipe: str = default_recipe("finetuning")):
    """Fine-tune a chat model on conversations from files, and align it with preference pairs from files.

    1. Ingest the conversations and validate them.
    2. Load the model to start from, and evaluate it on the held-out conversations.
    3. Fine-tune it, and evaluate it.
    4. Ingest the preference pairs and validate them.
    5. Align the model with them by DPO, train the SFT control, and evaluate both.
    6. Gate: keep the aligned model or the one before it. Register the chosen model.

    Args:
        recipe: the configuration of the run, as YAML: a section for each step. `ingest` reads the conversations and
            `ingest_preferences` the preference pairs; without the latter, the model is not aligned. The default is
            recipes/finetuning.yaml.
    """
    questions = ingest(recipe=recipe).set_display_name("ingest conversations").outputs["raw"]
    checked = validate(data=questions, recipe=recipe, section="validate_instructions")

    def measure(stage: str, model, earlier):
        """Evaluate `model` after `stage`, unless it is the model with the scores `earlier`."""
        task = evaluate(
            model=model, pairs=questions, conversations=questions, stage=stage, recipe=recipe, earlier=earlier
        )
        return task.set_display_name(f"evaluate {stage}").outputs["scores"]

    base = base_model(recipe=recipe).outputs["model"]
    base_scores = measure("base", base, questions)
    tuned = caption(start=base, conversations=questions, recipe=recipe, section="finetune").after(checked)
    tuned_model = tuned.set_display_name("finetune").outputs["model"]
    tuned_scores = measure("finetune", tuned_model, base_scores)

    judged = ingest(recipe=recipe, section="ingest_preferences").set_display_name("ingest preferences").outputs["raw"]
    preferred = validate(data=judged, recipe=recipe, section="validate_preferences")
    aligned = align(start=tuned_model, preferences=judged, recipe=recipe).after(preferred)
    aligned_scores = measure("align", aligned.outputs["model"], tuned_scores)
    measure("control", aligned.outputs["control"], tuned_scores)

    decision = gate(
        candidate=aligned.outputs["model"],
        candidate_scores=aligned_scores,
        fallback=tuned_model,
        fallback_scores=tuned_scores,
        pairs=questions,
        conversations=questions,
        recipe=recipe,
    )
    register(
        model=decision.outputs["chosen"],
        scores=decision.outputs["scores"],
        verdict=decision.outputs["verdict"],
        recipe=recipe,
    )
