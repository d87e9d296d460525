from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import bootstrap

from vlmflow.errors import DataError, GateError
from vlmflow.evaluation.comparison import compare, same_examples
from vlmflow.evaluation.scores import read_examples


def scores(values: np.ndarray) -> dict[str, float]:
    return {f"uid{i:04d}": float(value) for i, value in enumerate(values)}


def test_the_interval_agrees_with_scipys_bootstrap() -> None:
    generator = np.random.default_rng(3)
    old = generator.random(200)
    new = old + generator.normal(-0.02, 0.2, 200)
    (found,) = compare({"ocr": scores(new)}, {"ocr": scores(old)}, resamples=5000)
    reference = bootstrap((new - old,), np.mean, n_resamples=5000, method="percentile", rng=1).confidence_interval
    assert found.difference == pytest.approx((new - old).mean())
    assert found.low == pytest.approx(reference.low, abs=0.002)
    assert found.high == pytest.approx(reference.high, abs=0.002)


def test_the_paired_comparison_detects_a_loss_within_unpaired_noise() -> None:
    generator = np.random.default_rng(0)
    old = generator.random(300)  # large variance between examples, but each loses a little
    new = old - 0.03 + generator.normal(0, 0.01, 300)
    (found,) = compare({"ground": scores(new)}, {"ground": scores(old)})
    assert found.verdict == "worse" and found.high is not None and found.high < 0
    assert abs(new.mean() - old.mean()) < old.std() / 300**0.5 * 1.96  # within the unpaired noise
    (tolerated,) = compare({"ground": scores(new)}, {"ground": scores(old)}, tolerance=0.05)
    assert tolerated.verdict == "same"


@pytest.mark.parametrize(("shift", "verdict"), [(0.2, "better"), (0.0, "same"), (-0.2, "worse")])
def test_verdicts(shift: float, verdict: str) -> None:
    generator = np.random.default_rng(5)
    old = generator.random(100)
    new = old + shift + generator.normal(0, 0.3, 100) * (shift != 0)
    assert compare({"a": scores(new)}, {"a": scores(old)})[0].verdict == verdict


def test_equal_models_are_rarely_judged_worse() -> None:
    generator = np.random.default_rng(7)
    worse = 0
    for seed in range(200):
        old, new = generator.integers(2, size=(2, 100)).astype(float)
        worse += compare({"a": scores(new)}, {"a": scores(old)}, resamples=400, seed=seed)[0].verdict == "worse"
    assert worse <= 14  # the expected number for one side of a 95% interval is 2.5% of 200, which is 5


def test_the_interval_depends_on_the_seed_and_not_on_the_order_of_examples() -> None:
    generator = np.random.default_rng(1)
    old, new = scores(generator.random(50)), scores(generator.random(50))
    reordered = dict(reversed(old.items()))
    assert compare({"a": new}, {"a": old}, seed=4) == compare({"a": new}, {"a": reordered}, seed=4)
    assert compare({"a": new}, {"a": old}, seed=4) != compare({"a": new}, {"a": old}, seed=5)


def test_only_protected_capabilities_are_compared_and_a_lost_one_is_a_regression() -> None:
    old = {"ocr": scores(np.ones(20)), "ground": scores(np.ones(20))}
    new = {"ground": scores(np.zeros(20)), "caption": scores(np.ones(20))}
    assert [c.verdict for c in compare(new, old, protected=("ocr",))] == ["lost"]
    assert [(c.capability, c.is_regression) for c in compare(new, old)] == [("ground", True), ("ocr", True)]
    assert compare(new, old, protected=("caption",)) == []  # new in the challenger, so there is nothing to compare
    with pytest.raises(GateError, match="'orc' was not evaluated; evaluated: caption, ground, ocr"):
        compare(new, old, protected=("orc",))


def test_the_verdict_on_too_few_examples_is_unsure() -> None:
    assert compare({"a": {"x": 0.0}}, {"a": {"x": 1.0}})[0].verdict == "unsure"


def test_different_examples_are_an_error() -> None:
    old, new = {"a": {"x": 1.0, "y": 1.0}}, {"a": {"x": 1.0, "z": 1.0}}
    assert not same_examples(old, new)
    with pytest.raises(GateError, match="a: 2 examples were scored for one model only"):
        compare(new, old)


def test_missing_examples_and_an_example_scored_twice_are_errors(tmp_path: Path) -> None:
    table = pa.table({"capability": ["a", "a"], "example": ["x", "x"], "score": [1.0, 0.0]})
    pq.write_table(table, tmp_path / "examples.parquet")
    with pytest.raises(DataError, match="a scores the example x twice"):
        read_examples(tmp_path)
    with pytest.raises(DataError, match="no per-example scores"):
        read_examples(tmp_path / "none")
