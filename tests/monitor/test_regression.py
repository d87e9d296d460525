"""What fell is named with its difference; what cannot be compared is left out with its reason."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.monitor.regression import Scores, compare_scores, compare_with_registration
from vlmflow.errors import GateError
from vlmflow.evaluation.config import GateConfig


def scored(right: float, n: int = 200, prefix: str = "a", name: str = "reading", metric: str = "exact match") -> Scores:
    """A capability with a share of `n` examples right."""
    hits = {f"{prefix}{i}": float(i < right * n) for i in range(n)}
    return Scores({name: metric}, {name: hits})


@pytest.mark.parametrize("prefix", ["a", "b"])
@pytest.mark.parametrize(("right", "verdict"), [(0.5, "worse"), (0.88, "same"), (0.9, "same"), (1.0, "better")])
def test_the_same_examples_and_others(prefix: str, right: float, verdict: str) -> None:
    (found,), left_out = compare_scores(scored(right, prefix=prefix), scored(0.9), GateConfig(tolerance=0.05))
    assert (found.verdict, left_out) == (verdict, {})
    assert found.difference == pytest.approx(right - 0.9) and found.low <= found.difference <= found.high  # type: ignore[operator]


def test_an_interval_over_other_examples_is_that_of_two_means() -> None:
    """Against the normal approximation of the difference of two proportions."""
    (found,), _ = compare_scores(scored(0.7, 400, "b"), scored(0.9, 400), GateConfig())
    half = 1.96 * (0.7 * 0.3 / 400 + 0.9 * 0.1 / 400) ** 0.5
    assert found.low == pytest.approx(-0.2 - half, abs=0.01) and found.high == pytest.approx(-0.2 + half, abs=0.01)


def test_a_handful_of_examples_is_no_proof() -> None:
    (found,), _ = compare_scores(scored(0.0, 5, "b"), scored(1.0, 5), GateConfig(min_examples=10))
    assert found.verdict == "unsure"


@pytest.mark.parametrize(("today", "compared"), [("R@1 of 490", True), ("R@1 of 100", False), ("R@5 of 500", False)])
def test_metrics_that_differ_are_not_compared(today: str, compared: bool) -> None:
    now = scored(0.1, prefix="b", name="retrieval", metric=today)
    found, left_out = compare_scores(now, scored(0.9, name="retrieval", metric="R@1 of 500"), GateConfig())
    assert bool(found) == compared
    assert compared or left_out == {"retrieval": f"{today} today, R@1 of 500 when it was registered"}


def artifact(folder: Path, scores: Scores) -> Path:
    folder.mkdir()
    capabilities = {name: {"metric": metric} for name, metric in scores.metrics.items()}
    (folder / "scores.json").write_text(json.dumps({"capabilities": capabilities}))
    rows = [
        {"capability": name, "example": uid, "score": score}
        for name, examples in scores.examples.items()
        for uid, score in examples.items()
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "examples.parquet")
    return folder


def watched(tmp_path: Path, now: Scores, section: GateConfig) -> dict:
    (tmp_path / "version").mkdir()
    (tmp_path / "version" / "version.json").write_text('{"uri": "models:/vlm/3"}')
    return compare_with_registration(
        now=artifact(tmp_path / "now", now),
        registered=artifact(tmp_path / "then", scored(0.9)),
        version=tmp_path / "version",
        finding=tmp_path / "finding",
        page=tmp_path / "page",
        section=section,
    )


def test_a_fall_stops_and_is_written_down(tmp_path: Path) -> None:
    with pytest.raises(GateError, match=r"models:/vlm/3 fell: reading: 0.600 today, 0.900 as registered.*-0.300"):
        watched(tmp_path, scored(0.6, prefix="b"), GateConfig())
    assert json.loads((tmp_path / "finding").read_text())["fallen"] == ["reading"]
    assert (tmp_path / "page").read_text().startswith("**models:/vlm/3 fell: reading**\n")


def test_all_is_well(tmp_path: Path) -> None:
    assert watched(tmp_path, scored(0.9, prefix="b"), GateConfig())["fallen"] == []
    assert "does what it did" in (tmp_path / "page").read_text()


def test_what_is_protected_must_be_compared(tmp_path: Path) -> None:
    with pytest.raises(GateError, match="reading is protected and could not be compared: these data do not measure it"):
        watched(tmp_path, scored(0.9, name="retrieval", metric="R@1 of 500"), GateConfig(protected=("reading",)))


def test_nothing_to_compare_is_not_all_well(tmp_path: Path) -> None:
    with pytest.raises(GateError, match="nothing could be compared"):
        watched(tmp_path, scored(0.9, name="retrieval", metric="R@1 of 500"), GateConfig())
