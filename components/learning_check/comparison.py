"""Whether a family learned from its pairs: the proof that a falling loss is not."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from components.learning_check.config import LearningCheckConfig
from vlmflow.artifacts.checkpoint import Checkpoint
from vlmflow.evaluation.comparison import compare, read_examples

LOSS = "held-out loss"


def check_learning(
    *, model: Path, pairs: Path, scores: dict[str, Path], finding: Path, picture: Path, section: LearningCheckConfig
) -> dict[str, Any]:
    """Compare the trained model with its untrained self and with the control, on the same examples, and draw it.

    Args:
        model: the trained checkpoint.
        scores: the scores artifacts of `untrained`, `trained` and `shuffled`.
        finding: the file of the finding, JSON.
        picture: the file of the picture, PNG.

    Returns:
        The finding. `learned` says whether every capability is better than both, beyond the interval; the loss is
        told and not judged: a family whose target learns with it (I-JEPA) may have a low one before it knows anything.
    """
    values = {
        name: json.loads((place / "scores.json").read_text("utf-8"))["capabilities"] for name, place in scores.items()
    }
    given = {name: read_examples(place) for name, place in scores.items()}
    options = {"confidence": section.confidence, "resamples": section.resamples, "seed": section.seed}
    gains = {
        name: {c.capability: asdict(c) for c in compare(given["trained"], given[name], min_examples=2, **options)}
        for name in ("untrained", "shuffled")
    }
    judged = [name for name in values["trained"] if name != LOSS]
    card = Checkpoint(model).card
    found = {
        "family": card["family"],
        "learned": all(gain[name]["verdict"] == "better" for gain in gains.values() for name in judged),
        "steps": card["curve"][-1]["step"] if card.get("curve") else 0,
        "parameters": card["notes"].get("parameters"),
        "capabilities": {
            name: {
                "metric": value["metric"],
                "higher_is_better": value["higher_is_better"],
                "n": value["n"],
                **{
                    stage: {key: of[name][key] for key in ("value", "low", "high")}
                    for stage, of in (
                        ("trained", values["trained"]),
                        ("untrained", values["untrained"]),
                        ("shuffled", values["shuffled"]),
                    )
                },
                "blank_pictures": value["controls"]["blank"]["value"],
                "shuffled_pictures": value["controls"]["shuffled"]["value"],
                "over_untrained": {
                    key: gains["untrained"][name][key] for key in ("difference", "low", "high", "verdict")
                },
                "over_shuffled": {
                    key: gains["shuffled"][name][key] for key in ("difference", "low", "high", "verdict")
                },
            }
            for name, value in values["trained"].items()
        },
    }
    finding.parent.mkdir(parents=True, exist_ok=True)
    finding.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    from components.learning_check.figure import draw_figure

    draw_figure(model, pairs, picture, section.figure_rows)
    return found
