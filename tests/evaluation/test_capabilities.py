"""Metrics are correct on answers with known scores and strict on ties; the interval covers the true value."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vlmflow.evaluation import capabilities
from vlmflow.evaluation.capabilities import Question, Result
from vlmflow.evaluation.config import EvaluateConfig
from vlmflow.evaluation.measurement import build_control, value_with_interval
from vlmflow.evaluation.suites import Suite, swap_one_object

IMAGES = [Image.new("RGB", (64, 64), (i, i, i)) for i in range(4)]


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Replace the model's answers; the metric is the real one."""

    def set_answers(*answers: str) -> Any:
        monkeypatch.setattr(capabilities, "chat", lambda *_, **__: list(answers))
        return SimpleNamespace(box_convention="tiny")

    return set_answers


def questions(*answers: str) -> list[Question]:
    return [Question(str(i), (64, 64), "?", answer) for i, answer in enumerate(answers)]


def vectors(monkeypatch: pytest.MonkeyPatch, image: np.ndarray, text: np.ndarray) -> None:
    monkeypatch.setattr(capabilities, "similarity", lambda *_: image @ text.T)


def test_retrieval_with_a_constant_embedding_scores_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ties count as misses, so a constant scorer gets 0 and not 1."""
    vectors(monkeypatch, np.ones((4, 3)), np.ones((4, 3)))
    assert capabilities.retrieval(None, IMAGES, list("abcd")).score.sum() == 0  # type: ignore[arg-type]


def test_retrieval_counts_an_identical_caption_as_a_hit(monkeypatch: pytest.MonkeyPatch) -> None:
    eye = np.eye(4)
    vectors(monkeypatch, eye, eye[[1, 0, 2, 3]])
    assert capabilities.retrieval(None, IMAGES, ["a", "b", "c", "d"]).score.tolist() == [0, 0, 1, 1]  # type: ignore[arg-type]
    assert capabilities.retrieval(None, IMAGES, ["a", "a", "c", "d"]).score.tolist() == [1, 1, 1, 1]  # type: ignore[arg-type]


def test_chair_counts_absent_categories(answering: Any) -> None:
    loaded = answering("a circle and a star", "two circles", "a cross and a square", "nothing")
    items = questions("a circle", "two circles", "a cross", "a star")
    found = capabilities.object_listing(loaded, IMAGES, items, ["circle", "star", "cross", "square"])
    assert found["objects"].score.tolist() == [0, 1, 0, 0]
    assert found["hallucination"].score.tolist() == [1, 0, 1, 0]
    assert found["hallucination"].extras["CHAIR-i"] == pytest.approx(2 / 5)
    assert found["hallucination"].gain.tolist() == [-1, 0, -1, 0]


def test_an_answer_without_a_box_is_a_miss_and_a_parse_failure(answering: Any) -> None:
    truth = "<box>0,0,32,32</box>"
    loaded = answering("<loc00><loc00><loc31><loc31>", "over there", "<loc32><loc32><loc63><loc63>", "<loc00><loc00>")
    found = capabilities.grounding(loaded, IMAGES, questions(*[truth] * 4))
    assert found.score.tolist() == [1, 0, 0, 0]
    assert found.extras["parse failures"] == 0.5


def test_character_error_rate_is_errors_over_characters(answering: Any) -> None:
    found = capabilities.text_recognition(
        answering("abcd", "abxd", "", "abcdefgh"), IMAGES, questions("abcd", "abcd", "abcd", "abcd")
    )
    errors = found["ocr errors"]
    assert errors.score.tolist() == [0, 1, 4, 4]
    assert errors.score.sum() / errors.weight.sum() == pytest.approx(9 / 16)
    assert found["ocr"].score.tolist() == [1, 0, 0, 0]


def test_pope_ignores_case_and_a_trailing_full_stop(answering: Any) -> None:
    found = capabilities.pope(answering("Yes.", "no", "maybe", "yes"), IMAGES, questions("yes", "no", "no", "no"))
    assert found.score.tolist() == [1, 1, 0, 0]
    assert found.extras["yes ratio"] == 0.5


def test_the_interval_covers_the_true_value() -> None:
    section, rng, hits = EvaluateConfig(resamples=300), np.random.default_rng(0), 0
    for _ in range(60):
        score = (rng.random(80) < 0.3).astype(float)
        found = value_with_interval(Result("m", score, np.ones(80)), section)
        assert found["low"] <= found["value"] <= found["high"]
        hits += found["low"] <= 0.3 <= found["high"]
    assert hits >= 50
    assert value_with_interval(Result("m", np.ones(5), np.ones(5)), section) == {"value": 1.0, "low": 1.0, "high": 1.0}


def test_controls_replace_every_image() -> None:
    suite = Suite(IMAGES, list("abcd"), lambda *_: None, [0, 1, 2, 3])
    blank = build_control(suite, "blank", 4, seed=0)
    assert all(image.getextrema() == ((96, 96),) * 3 for image in blank.images)
    shuffled = build_control(suite, "shuffled", 4, seed=0)
    assert all(a is not b for a, b in zip(shuffled.images, IMAGES, strict=True))
    assert sorted(map(id, shuffled.images)) == sorted(map(id, IMAGES))


def test_swapping_an_object_names_an_absent_category() -> None:
    vocabulary = ["circle", "star", "cross"]
    question = Question("u", (64, 64), "?", "two circles and a star")
    wrong = swap_one_object(question, vocabulary, seed=1)
    assert wrong is not None and wrong != question.answer and "cross" in wrong
    assert swap_one_object(Question("u", (1, 1), "?", "a circle"), ["circle"], seed=1) is None
