"""A regression is reported with its difference; a capability that cannot be compared is left out with a reason."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.monitor.regression import Scores, compare_scores, compare_with_registration
from vlmflow.errors import GateError
from vlmflow.evaluation.config import GateConfig


def make_scores(
    right: float, n: int = 200, prefix: str = "a", name: str = "ocr", metric: str = "exact match"
) -> Scores:
    """A capability with a share `right` of `n` examples correct."""
    hits = {f"{prefix}{i}": float(i < right * n) for i in range(n)}
    return Scores({name: metric}, {name: hits})


@pytest.mark.parametrize("prefix", ["a", "b"])
@pytest.mark.parametrize(("right", "verdict"), [(0.5, "worse"), (0.88, "same"), (0.9, "same"), (1.0, "better")])
def test_verdicts_on_the_same_and_on_other_examples(prefix: str, right: float, verdict: str) -> None:
    (found,), left_out = compare_scores(make_scores(right, prefix=prefix), make_scores(0.9), GateConfig(tolerance=0.05))
    assert (found.verdict, left_out) == (verdict, {})
    assert found.difference == pytest.approx(right - 0.9) and found.low <= found.difference <= found.high  # type: ignore[operator]


def test_the_interval_over_other_examples_agrees_with_the_normal_approximation() -> None:
    """The difference of two proportions."""
    (found,), _ = compare_scores(make_scores(0.7, 400, "b"), make_scores(0.9, 400), GateConfig())
    half = 1.96 * (0.7 * 0.3 / 400 + 0.9 * 0.1 / 400) ** 0.5
    assert found.low == pytest.approx(-0.2 - half, abs=0.01) and found.high == pytest.approx(-0.2 + half, abs=0.01)


def test_the_verdict_on_too_few_examples_is_unsure() -> None:
    (found,), _ = compare_scores(make_scores(0.0, 5, "b"), make_scores(1.0, 5), GateConfig(min_examples=10))
    assert found.verdict == "unsure"


@pytest.mark.parametrize(("today", "compared"), [("R@1 of 490", True), ("R@1 of 100", False), ("R@5 of 500", False)])
def test_different_metrics_are_not_compared(today: str, compared: bool) -> None:
    now = make_scores(0.1, prefix="b", name="retrieval", metric=today)
    found, left_out = compare_scores(now, make_scores(0.9, name="retrieval", metric="R@1 of 500"), GateConfig())
    assert bool(found) == compared
    assert compared or left_out == {"retrieval": f"metric {today} now, R@1 of 500 at registration"}


def write_artifact(folder: Path, scores: Scores) -> Path:
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


def run_monitor(tmp_path: Path, now: Scores, section: GateConfig) -> dict:
    (tmp_path / "version").mkdir()
    (tmp_path / "version" / "version.json").write_text('{"uri": "models:/vlm/3"}')
    return compare_with_registration(
        now=write_artifact(tmp_path / "now", now),
        registered=write_artifact(tmp_path / "then", make_scores(0.9)),
        version=tmp_path / "version",
        finding=tmp_path / "finding",
        page=tmp_path / "page",
        section=section,
    )


def test_a_regression_is_written_and_raises(tmp_path: Path) -> None:
    with pytest.raises(GateError, match=r"models:/vlm/3 got worse: ocr: 0.600 now, 0.900 at registration.*-0.300"):
        run_monitor(tmp_path, make_scores(0.6, prefix="b"), GateConfig())
    assert json.loads((tmp_path / "finding").read_text())["regressions"] == ["ocr"]
    assert (tmp_path / "page").read_text().startswith("**models:/vlm/3 got worse: ocr**\n")


def test_no_regression(tmp_path: Path) -> None:
    assert run_monitor(tmp_path, make_scores(0.9, prefix="b"), GateConfig())["regressions"] == []
    assert "no regression" in (tmp_path / "page").read_text()


def test_a_protected_capability_that_cannot_be_compared_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(GateError, match="ocr is protected and could not be compared: not measured on the new data"):
        run_monitor(tmp_path, make_scores(0.9, name="retrieval", metric="R@1 of 500"), GateConfig(protected=("ocr",)))


def test_no_comparable_capability_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(GateError, match="no capability could be compared"):
        run_monitor(tmp_path, make_scores(0.9, name="retrieval", metric="R@1 of 500"), GateConfig())
