"""Evidence that a family learned from its pairs, which a falling loss alone does not give."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from components.learning_check.config import LearningCheckConfig
from vlmflow.artifacts.checkpoint import Checkpoint
from vlmflow.evaluation.comparison import compare
from vlmflow.evaluation.scores import read_examples, read_scores

LOSS = "held-out loss"


def check_learning(
    *, model: Path, pairs: Path, scores: dict[str, Path], finding: Path, figure: Path, section: LearningCheckConfig
) -> dict[str, Any]:
    """Compare the trained model with its untrained self and with the control on the same examples, and draw a figure.

    Args:
        model: the trained checkpoint.
        scores: the scores artifacts of `untrained`, `trained` and `shuffled`.
        finding: the JSON file to write.
        figure: the PNG file to write.

    Returns:
        The finding. `learned` is true if each capability is better than in both by more than the interval. The loss
        is reported but not judged: if the target is trained too (I-JEPA), it may be low before training.
    """
    values = {name: read_scores(folder)["capabilities"] for name, folder in scores.items()}
    examples = {name: read_examples(folder) for name, folder in scores.items()}
    options = {"confidence": section.confidence, "resamples": section.resamples, "seed": section.seed}
    gains = {
        name: {c.capability: asdict(c) for c in compare(examples["trained"], examples[name], min_examples=2, **options)}
        for name in ("untrained", "shuffled")
    }
    judged = [name for name in values["trained"] if name != LOSS]
    card = Checkpoint(model).card
    result = {
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
                    model: {key: values[model][name][key] for key in ("value", "low", "high")}
                    for model in ("trained", "untrained", "shuffled")
                },
                "blank_images": value["controls"]["blank"]["value"],
                "shuffled_images": value["controls"]["shuffled"]["value"],
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
    finding.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    from components.learning_check.figure import draw_figure

    draw_figure(model, pairs, figure, section.figure_rows)
    return result
