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
from vlmflow.tracking.registry import RegistryConfig, list_versions

RECIPE = "seed: 0\n"


@pytest.fixture(scope="module", autouse=True)
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv("VLMFLOW_HOME", str(tmp_path_factory.mktemp("home")))
        yield


def write_candidate(folder: Path, words: str, data: str = "d", **capabilities: list[float]) -> Candidate:
    """A model folder whose hash depends on `words`, and its scores on examples named after `data`."""
    model, scores = folder / words / "model", folder / words / "scores"
    model.mkdir(parents=True)
    scores.mkdir()
    (model / "config.json").write_text(json.dumps({"words": words}))
    (model / "card.json").write_text(json.dumps({"family": "tiny-vlm", "step": "align", "datasets": ["d1", "d2"]}))
    (scores / "scores.json").write_text(json.dumps({"model": Checkpoint(model).hash, "data": [data]}))
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


@pytest.mark.parametrize("wrong", [{"confidence": 1.0}, {"resamples": 0}, {"tolerance": -1.0}, {"min_examples": 1}])
def test_impossible_values(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        GateConfig(**wrong)
