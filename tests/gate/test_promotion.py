"""The gate and the registration together, on a real SQLite store."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.gate.promotion import Candidate, gate
from components.register.registration import register
from vlmflow.artifacts.checkpoint import Checkpoint
from vlmflow.errors import GateError
from vlmflow.evaluation.config import GateConfig
from vlmflow.evaluation.controls import unproven
from vlmflow.tracking.registry import RegistryConfig, list_versions

RECIPE = "seed: 0\n"


@pytest.fixture(scope="module", autouse=True)
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv("VLMFLOW_HOME", str(tmp_path_factory.mktemp("home")))
        yield


def value(mean: float, n: int = 30, control: float = 0.0, **more: Any) -> dict[str, Any]:
    """A capability of `scores.json` with intervals of ±0.05, whose controls are both `control`."""
    interval = {"value": mean, "low": mean - 0.05, "high": mean + 0.05}
    interval_of_control = {"value": control, "low": control - 0.05, "high": control + 0.05}
    controls = {"blank": interval_of_control, "shuffled": interval_of_control}
    return {**interval, "n": n, "higher_is_better": True, "needs_image": True, "controls": controls, **more}


def write_candidate(
    folder: Path, words: str, data: str = "d", scored: dict[str, Any] | None = None, **capabilities: list[float]
) -> Candidate:
    """A model folder whose hash depends on `words`, and its scores on examples named after `data`.

    scored: entries of `scores.json`; by default they beat their controls.
    """
    model, scores = folder / words / "model", folder / words / "scores"
    model.mkdir(parents=True)
    scores.mkdir()
    (model / "config.json").write_text(json.dumps({"words": words}))
    (model / "card.json").write_text(json.dumps({"family": "tiny-vlm", "step": "align", "datasets": ["d1", "d2"]}))
    values = {
        name: value(mean := sum(gains) / len(gains), len(gains), mean - 0.5) for name, gains in capabilities.items()
    }
    content = {"model": Checkpoint(model).hash, "data": [data], "capabilities": values | (scored or {})}
    (scores / "scores.json").write_text(json.dumps(content))
    rows = [(name, f"{data}{i}", score) for name, values in capabilities.items() for i, score in enumerate(values)]
    columns = dict(zip(("capability", "example", "score"), map(list, zip(*rows, strict=True)), strict=True))
    pq.write_table(pa.table(columns), scores / "examples.parquet")
    return Candidate(model, scores)


def never(*, model: Path, out: Path) -> None:
    raise AssertionError("the champion already has scores on these examples")


def decide(folder: Path, candidate: Candidate, fallback: Candidate, name: str, evaluate: Any = never) -> dict[str, Any]:
    outputs = {name: folder / name for name in ("chosen", "scores", "verdict")}
    return gate(candidate, fallback, registry=name, evaluate=evaluate, **outputs, section=GateConfig())


def register_chosen(folder: Path, name: str) -> dict[str, Any]:
    return register(
        folder / "chosen", folder / "scores", folder / "verdict", folder / "version", RECIPE, RegistryConfig(name=name)
    )


def gate_and_register(
    folder: Path, candidate: Candidate, name: str, evaluate: Any = never
) -> tuple[dict[str, Any], dict[str, Any]]:
    return decide(folder, candidate, candidate, name, evaluate), register_chosen(folder, name)


def test_a_capability_that_got_worse_in_alignment_keeps_the_fallback(tmp_path: Path) -> None:
    before = write_candidate(tmp_path, "before", ocr=[1.0] * 30, prefer=[0.0] * 30)
    after = write_candidate(tmp_path, "after", ocr=[0.0] * 20 + [1.0] * 10, prefer=[1.0] * 30)
    verdict = decide(tmp_path / "out", after, before, "fallback")
    assert verdict["chosen"] == "fallback" and verdict["promoted"] and verdict["against"] is None
    assert "alignment refused: ocr: 0.333 against 1.000" in verdict["reasons"][0]
    assert Checkpoint(tmp_path / "out/chosen").hash == Checkpoint(before.model).hash
    assert json.loads((tmp_path / "out/verdict/verdict.json").read_text()) == verdict


def test_versions_are_promoted_or_kept_as_challengers(tmp_path: Path) -> None:
    first = write_candidate(tmp_path, "first", ocr=[0.5] * 30, ground=[0.5] * 30)
    verdict, version = gate_and_register(tmp_path / "1", first, "life")
    assert verdict["promoted"] and (version["version"], version["alias"]) == ("1", "champion")

    again = register_chosen(tmp_path / "1", "life")
    assert again == version and len(list_versions("life")) == 1

    worse = write_candidate(tmp_path, "worse", ocr=[0.9] * 30, ground=[0.1] * 30)
    verdict, version = gate_and_register(tmp_path / "2", worse, "life")
    assert not verdict["promoted"] and verdict["against"] == "1"
    assert (version["version"], version["alias"]) == ("2", "challenger")
    challenger = list_versions("life")[0]
    assert "promotion refused by models:/life/1: ground: 0.100 against 0.500" in challenger.tags["gate"]
    assert challenger.tags["datasets"] == "d1,d2" and challenger.model_hash == Checkpoint(worse.model).hash

    better = write_candidate(tmp_path, "better", ocr=[0.6] * 30, ground=[0.6] * 30)
    verdict, version = gate_and_register(tmp_path / "3", better, "life")
    assert verdict["promoted"] and (version["version"], version["alias"]) == ("3", "champion")
    assert [v.aliases for v in list_versions("life")] == [("champion",), ("challenger",), ()]

    verdict, version = gate_and_register(tmp_path / "4", better, "life")
    assert "the champion, is this model" in verdict["reasons"][0]
    assert (version["version"], version["alias"]) == ("3", "champion") and len(list_versions("life")) == 3


def test_a_champion_scored_on_other_examples_is_evaluated_again(tmp_path: Path) -> None:
    old = write_candidate(tmp_path, "old", data="january", ocr=[1.0] * 30)
    gate_and_register(tmp_path / "1", old, "moved")
    new = write_candidate(tmp_path, "new", data="june", ocr=[0.5] * 30)
    evaluated: list[str] = []

    def evaluate(*, model: Path, out: Path) -> None:
        evaluated.append(Checkpoint(model).hash)
        out.mkdir()
        columns = {"capability": ["ocr"] * 30, "example": [f"june{i}" for i in range(30)], "score": [0.9] * 30}
        pq.write_table(pa.table(columns), out / "examples.parquet")

    verdict = decide(tmp_path / "2", new, new, "moved", evaluate)
    assert evaluated == [Checkpoint(old.model).hash]
    assert not verdict["promoted"] and verdict["capabilities"][0]["difference"] == pytest.approx(-0.4)


def test_a_decision_against_an_outdated_champion_is_refused(tmp_path: Path) -> None:
    one = write_candidate(tmp_path, "one", ocr=[0.5] * 30)
    two = write_candidate(tmp_path, "two", ocr=[0.6] * 30)
    decide(tmp_path / "late", two, two, "race")
    gate_and_register(tmp_path / "1", one, "race")
    with pytest.raises(GateError, match="compared with no champion, the champion is now models:/race/1; run the gate"):
        register_chosen(tmp_path / "late", "race")
    assert len(list_versions("race")) == 1


CHANCE = value(0.1, control=0.08)
NO_ANSWER = value(0.7, control=0.7, higher_is_better=False, needs_image=False)


@pytest.mark.parametrize(
    ("scored", "protected", "refused"),
    [
        ({"ocr": CHANCE}, (), {"ocr": ["blank", "shuffled"]}),
        ({"ocr": value(0.5), "ground": CHANCE}, (), {"ground": ["blank", "shuffled"]}),
        ({"ocr": value(0.5), "ground": CHANCE}, ("ocr",), {}),
        ({"ocr": value(0.5), "hallucination": NO_ANSWER}, (), {}),
        ({"ocr": CHANCE, "hallucination": NO_ANSWER}, ("hallucination",), {"ocr": ["blank", "shuffled"]}),
        ({"hallucination": NO_ANSWER}, (), {"": ["blank", "shuffled"]}),
        ({"ocr": value(0.5), "ground": {**CHANCE, "n": 3}}, (), {}),  # too few examples to judge
        ({"ocr": value(0.5, 3)}, (), {"": ["blank", "shuffled"]}),
        ({"ocr": value(0.5, controls={"blank": CHANCE["controls"]["blank"]})}, (), {"ocr": ["shuffled"]}),
    ],
)
def test_a_capability_at_chance_is_unproven(scored: dict, protected: tuple, refused: dict) -> None:
    assert unproven(scored, protected, min_examples=10) == refused


def test_a_model_at_chance_is_no_champion_not_even_the_first(tmp_path: Path) -> None:
    """Such as the control that zoo check trains on shuffled pairs."""
    shuffled = write_candidate(tmp_path, "shuffled", ocr=[0.1] * 30, scored={"ocr": CHANCE})
    decision, version = gate_and_register(tmp_path / "1", shuffled, "chance")
    assert not decision["promoted"] and version["alias"] == "challenger"
    assert decision["unproven"] == {"ocr": ["blank", "shuffled"]}
    assert (
        "ocr 0.100 [0.050, 0.150] is not better than with blank images 0.080 [0.030, 0.130]" in decision["reasons"][0]
    )
    outputs = {name: tmp_path / "lax" / name for name in ("chosen", "scores", "verdict")}
    section = GateConfig(beat_controls=False)
    assert gate(shuffled, shuffled, registry="lax", evaluate=never, **outputs, section=section)["promoted"]


@pytest.mark.parametrize("wrong", [{"confidence": 1.0}, {"resamples": 0}, {"tolerance": -1.0}, {"min_examples": 1}])
def test_impossible_values(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        GateConfig(**wrong)
