"""Metrics are correct on answers with known scores and strict on ties; the interval covers the true value."""

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vlmflow.artifacts import dataset
from vlmflow.evaluation import capabilities
from vlmflow.evaluation.capabilities import Question, Result
from vlmflow.evaluation.config import EvaluateConfig
from vlmflow.evaluation.intervals import macro_interval
from vlmflow.evaluation.measurement import build_control, value_with_interval
from vlmflow.evaluation.scores import describe_examples
from vlmflow.evaluation.suites import Suite, build_pair_suites, swap_one_object

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


def test_retrieval_scores_groups_of_equal_captions_and_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two captions of one image, and one caption of two images: any of a group is right, each is one candidate."""
    captions, keys = ["a", "b", "c", "c"], ["0", "0", "1", "2"]

    def similarity(_: Any, images: Any, texts: list[str]) -> np.ndarray:
        scores = {"a": [0.1, 0.1, 0.2, 0.2], "b": [0.9, 0.9, 0.1, 0.3], "c": [0.0, 0.0, 0.5, 0.1]}
        return np.array([scores[text] for text in texts]).T

    monkeypatch.setattr(capabilities, "similarity", similarity)
    found = capabilities.retrieval(None, IMAGES, captions, keys)  # type: ignore[arg-type]
    assert found.metric == "R@1 of 3, image to text"
    assert found.score.tolist() == [1, 1, 1, 0]
    assert found.secondary["R@1 t2i"].score.tolist() == [0, 1, 1]  # of a, b and c, among three images
    assert set(found.secondary) == {"R@1 t2i"}  # R@5 of three candidates is 1 by definition


def test_recall_at_five_and_ten_have_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors(monkeypatch, np.eye(12), np.eye(12)[[*range(6), *range(11, 5, -1)]])
    images = [Image.new("RGB", (8, 8))] * 12
    found = capabilities.retrieval(None, images, list("abcdefghijkl"))  # type: ignore[arg-type]
    assert set(found.secondary) == {"R@5 i2t", "R@10 i2t", "R@1 t2i", "R@5 t2i", "R@10 t2i"}
    interval = value_with_interval(found.secondary["R@5 i2t"], EvaluateConfig())
    assert interval["low"] < interval["value"] < interval["high"]


def test_macro_accuracy_weighs_classes_equally(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = ["common"] * 90 + ["rare"] * 10
    monkeypatch.setattr(capabilities, "classify", lambda *_: np.eye(2)[[0] * 90 + [0] * 5 + [1] * 5])
    found = capabilities.zero_shot(None, [None] * 100, labels)  # type: ignore[arg-type, list-item]
    assert found.value == pytest.approx(0.95)
    macro = value_with_interval(found.secondary["macro accuracy"], EvaluateConfig())
    assert macro["value"] == pytest.approx(0.75) and 0.5 < macro["low"] < 0.7 and 0.8 < macro["high"] < 1


def test_the_macro_interval_covers_the_true_value() -> None:
    rng, groups, hits = np.random.default_rng(0), np.repeat(np.arange(4), [40, 20, 10, 10]), 0
    for _ in range(60):
        values = (rng.random(80) < np.array([0.2, 0.4, 0.6, 0.8])[groups]).astype(float)
        low, high = macro_interval(values, groups, confidence=0.95, resamples=300, seed=0)
        hits += low <= 0.5 <= high
    assert hits >= 52


def test_chair_counts_absent_categories(answering: Any) -> None:
    loaded = answering("a circle and a star", "two circles", "a cross and a square", "nothing")
    items = questions("a circle", "two circles", "a cross", "a star")
    found = capabilities.object_listing(loaded, IMAGES, items, ["circle", "star", "cross", "square"])
    assert found["objects"].score.tolist() == [0, 1, 0, 0]
    assert found["hallucination"].score.tolist() == [1, 0, 1, 0]
    assert found["hallucination"].extras["CHAIR-i"] == pytest.approx(2 / 5)
    assert found["hallucination"].gain.tolist() == [-1, 0, -1, 0]


def test_chair_i_is_undefined_if_nothing_is_named(answering: Any) -> None:
    found = capabilities.object_listing(answering("", "?"), IMAGES[:2], questions("a star", "a star"), ["star"])
    assert found["hallucination"].extras == {"objects mentioned": 0}


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


ROW = {"split": "test", "licence": "", "source": "", "width": 8, "height": 8, "label": "", "regions": [], "lines": []}


def test_what_the_test_split_does_not_allow_is_named_and_a_sample_says_of_how_many(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    IMAGES[0].save(buffer, "PNG")
    rows = [{**ROW, "uid": str(i), "image": buffer.getvalue(), "caption": "the same", "label": "dog"} for i in range(9)]
    loaded: Any = SimpleNamespace(abilities=frozenset(["retrieval", "classify", "image_text_matching", "reconstruct"]))
    section = EvaluateConfig(limit=4)
    suites, missing = build_pair_suites(loaded, dataset.write(tmp_path / "same", "pairs", rows), section)
    alike = "1 distinct captions of 4 captioned test images"
    assert missing == {
        "retrieval": alike,
        "image-text matching": alike,
        "zero-shot": "1 class among 4 labelled test images",
    }
    assert list(suites) == ["reconstruction"] and (
        suites["reconstruction"].available,
        len(suites["reconstruction"].items),
    ) == (9, 4)
    varied = [{**row, "caption": f"number {i}"} for i, row in enumerate(rows)]
    suites, missing = build_pair_suites(loaded, dataset.write(tmp_path / "varied", "pairs", varied), section)
    assert {"retrieval", "image-text matching"} <= set(suites) and set(missing) == {"zero-shot"}
    assert describe_examples({"n": 4, "available": 9}) == "4 of 9" and describe_examples({"n": 4}) == "4"


def test_swapping_an_object_names_an_absent_category() -> None:
    vocabulary = ["circle", "star", "cross"]
    question = Question("u", (64, 64), "?", "two circles and a star")
    wrong = swap_one_object(question, vocabulary, seed=1)
    assert wrong is not None and wrong != question.answer and "cross" in wrong
    assert swap_one_object(Question("u", (1, 1), "?", "a circle"), ["circle"], seed=1) is None
