"""A family has learned if it is better than its untrained self and than the control by more than the interval."""

import base64
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.learning_check import figure
from components.learning_check.comparison import check_learning
from components.learning_check.config import LearningCheckConfig
from components.learning_check.page import write_page
from vlmflow.artifacts.checkpoint import CARD
from vlmflow.tracking.step_run import is_html_page

RNG = np.random.default_rng(0)


def scores(folder: Path, rate: float, loss: float) -> Path:
    """A scores artifact: a share `rate` of 200 examples is correct; 10 batches have the loss `loss`."""
    folder.mkdir()
    right = (RNG.random(200) < rate).astype(float)
    examples = [{"capability": "image-text matching", "example": str(i), "score": s} for i, s in enumerate(right)]
    examples += [{"capability": "held-out loss", "example": f"batch {i}", "score": -loss} for i in range(10)]
    pq.write_table(pa.Table.from_pylist(examples), folder / "examples.parquet")
    one = {"metric": "m", "higher_is_better": True, "n": 200, "value": rate, "low": 0, "high": 1,
           "controls": {kind: {"value": 0.5} for kind in ("blank", "shuffled")}}  # fmt: skip
    content = {
        "capabilities": {"image-text matching": one, "held-out loss": {**one, "higher_is_better": False, "value": loss}}
    }
    (folder / "scores.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("trained", "untrained", "shuffled", "learned"),
    [(0.8, 0.5, 0.5, True), (0.8, 0.5, 0.8, False), (0.5, 0.5, 0.4, False), (0.5, 0.8, 0.5, False)],
)
def test_learned_requires_both_comparisons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: float, untrained: float, shuffled: float, learned: bool
) -> None:
    monkeypatch.setattr(figure, "draw_figure", lambda *_: None)
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    card = {"family": "bert", "notes": {"parameters": 7}, "curve": [{"step": 5, "loss": 1.0}]}
    (model / CARD).write_text(json.dumps(card))
    rates = {"trained": trained, "untrained": untrained, "shuffled": shuffled}
    # An equal loss must not affect the result.
    folders = {name: scores(tmp_path / name, rate, loss=1.0) for name, rate in rates.items()}
    found = check_learning(
        model=model, pairs=tmp_path, scores=folders, finding=tmp_path / "found", figure=tmp_path / "p",
        section=LearningCheckConfig(resamples=400),
    )  # fmt: skip
    assert found["learned"] is learned
    assert json.loads((tmp_path / "found").read_text()) == found
    assert found["steps"] == 5 and found["parameters"] == 7
    gain = found["capabilities"]["image-text matching"]["over_untrained"]
    assert gain["low"] <= gain["difference"] <= gain["high"]
    (tmp_path / "p").write_bytes(b"PNG")
    write_page(found, tmp_path / "p", tmp_path / "page")
    assert is_html_page(tmp_path / "page")
    page = (tmp_path / "page").read_text()
    assert ("bert learned" if learned else "bert did not learn") in page and "image-text matching" in page
    assert f"data:image/png;base64,{base64.b64encode(b'PNG').decode()}" in page


def test_invalid_values_of_the_section_are_errors() -> None:
    with pytest.raises(ValueError, match="confidence"):
        LearningCheckConfig(confidence=1)
    with pytest.raises(ValueError, match="resamples"):
        LearningCheckConfig(resamples=5)
    with pytest.raises(ValueError, match="figure_rows"):
        LearningCheckConfig(figure_rows=0)
