"""Metrics: right on answers whose score is known, strict on ties, and an interval that covers."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vlmflow.evaluation import capabilities as can
from vlmflow.evaluation.capabilities import Question, Result
from vlmflow.evaluation.config import EvaluateConfig
from vlmflow.evaluation.suites import Suite, _build_control, swap_one_object, value_with_interval

PICTURES = [Image.new("RGB", (64, 64), (i, i, i)) for i in range(4)]


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Set what the model says; the metric itself is real."""

    def say(*answers: str) -> Any:
        monkeypatch.setattr(can, "chat", lambda *_, **__: list(answers))
        return SimpleNamespace(box_convention="sketch")

    return say


def questions(*answers: str) -> list[Question]:
    return [Question(str(i), (64, 64), "?", answer) for i, answer in enumerate(answers)]


def vectors(monkeypatch: pytest.MonkeyPatch, image: np.ndarray, text: np.ndarray) -> None:
    monkeypatch.setattr(can, "similarity", lambda *_: image @ text.T)


def test_a_constant_embedding_finds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ties count against the model: a constant scorer gets 0, not 1."""
    vectors(monkeypatch, np.ones((4, 3)), np.ones((4, 3)))
    assert can.retrieval(None, PICTURES, list("abcd")).score.sum() == 0  # type: ignore[arg-type]


def test_retrieval_counts_an_equal_caption_as_right(monkeypatch: pytest.MonkeyPatch) -> None:
    eye = np.eye(4)
    vectors(monkeypatch, eye, eye[[1, 0, 2, 3]])
    assert can.retrieval(None, PICTURES, ["a", "b", "c", "d"]).score.tolist() == [0, 0, 1, 1]  # type: ignore[arg-type]
    assert can.retrieval(None, PICTURES, ["a", "a", "c", "d"]).score.tolist() == [1, 1, 1, 1]  # type: ignore[arg-type]


def test_chair_counts_kinds_that_are_not_there(answering: Any) -> None:
    loaded = answering("a circle and a star", "two circles", "a cross and a square", "nothing")
    asked = questions("a circle", "two circles", "a cross", "a star")
    found = can.object_listing(loaded, PICTURES, asked, ["circle", "star", "cross", "square"])
    assert found["objects"].score.tolist() == [0, 1, 0, 0]
    assert found["hallucination"].score.tolist() == [1, 0, 1, 0]
    assert found["hallucination"].extras["CHAIR-i"] == pytest.approx(2 / 5)
    assert found["hallucination"].gain.tolist() == [-1, 0, -1, 0]


def test_a_box_that_cannot_be_read_is_a_miss_and_counted_apart(answering: Any) -> None:
    truth = "<box>0,0,32,32</box>"
    loaded = answering("<loc00><loc00><loc31><loc31>", "over there", "<loc32><loc32><loc63><loc63>", "<loc00><loc00>")
    found = can.grounding(loaded, PICTURES, questions(*[truth] * 4))
    assert found.score.tolist() == [1, 0, 0, 0]
    assert found.extras["parse failures"] == 0.5


def test_the_error_rate_is_errors_over_characters(answering: Any) -> None:
    found = can.text_recognition(
        answering("abcd", "abxd", "", "abcdefgh"), PICTURES, questions("abcd", "abcd", "abcd", "abcd")
    )
    errors = found["reading errors"]
    assert errors.score.tolist() == [0, 1, 4, 4]
    assert errors.score.sum() / errors.weight.sum() == pytest.approx(9 / 16)
    assert found["reading"].score.tolist() == [1, 0, 0, 0]


def test_yes_with_a_full_stop_is_yes(answering: Any) -> None:
    found = can.pope(answering("Yes.", "no", "maybe", "yes"), PICTURES, questions("yes", "no", "no", "no"))
    assert found.score.tolist() == [1, 1, 0, 0]
    assert found.extras["yes ratio"] == 0.5


def test_an_interval_covers_its_truth() -> None:
    section, rng, hits = EvaluateConfig(resamples=300), np.random.default_rng(0), 0
    for _ in range(60):
        score = (rng.random(80) < 0.3).astype(float)
        found = value_with_interval(Result("m", score, np.ones(80)), section)
        assert found["low"] <= found["value"] <= found["high"]
        hits += found["low"] <= 0.3 <= found["high"]
    assert hits >= 50
    assert value_with_interval(Result("m", np.ones(5), np.ones(5)), section) == {"value": 1.0, "low": 1.0, "high": 1.0}


def test_controls_take_the_picture_away() -> None:
    suite = Suite(PICTURES, list("abcd"), None, [0, 1, 2, 3])
    blank = _build_control(suite, "blank", 4, seed=0)
    assert all(picture.getextrema() == ((96, 96),) * 3 for picture in blank.images)
    shuffled = _build_control(suite, "shuffled", 4, seed=0)
    assert all(a is not b for a, b in zip(shuffled.images, PICTURES, strict=True))
    assert sorted(map(id, shuffled.images)) == sorted(map(id, PICTURES))


def test_a_hallucinated_list_names_what_is_not_there() -> None:
    vocabulary = ["circle", "star", "cross"]
    question = Question("u", (64, 64), "?", "two circles and a star")
    wrong = swap_one_object(question, vocabulary, seed=1)
    assert wrong is not None and wrong != question.answer and "cross" in wrong
    assert swap_one_object(Question("u", (1, 1), "?", "a circle"), ["circle"], seed=1) is None
