"""Zero-shot probabilities are at the model's own scale; class vectors are computed once."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import expit, softmax
from torch import nn

from vlmflow.config.recipes import load
from vlmflow.errors import RecipeError
from vlmflow.evaluation.config import EvaluateConfig
from vlmflow.inference import embedding

IMAGE, CLASSES = np.array([[1.0, 0.0]]), np.array([[0.6, 0.8], [0.8, 0.6]])


class Tower(nn.Module):
    def __init__(self, scale: float, bias: float | None = None):
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(float(np.log(scale))))
        if bias is not None:
            self.logit_bias = nn.Parameter(torch.tensor(bias))


class Clamped(Tower):
    @property
    def scale(self) -> torch.Tensor:
        return self.logit_scale.exp().clamp(max=100.0)


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Fixed embeddings; the list collects the texts that are embedded."""
    texts: list[str] = []

    def embed_texts(_: Any, given: list[str]) -> np.ndarray:
        texts.extend(given)
        return np.repeat(CLASSES, len(given) // len(CLASSES), axis=0)

    monkeypatch.setattr(embedding, "embed_images", lambda *_: IMAGE)
    monkeypatch.setattr(embedding, "embed_texts", embed_texts)
    return texts


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (Tower(5.0), softmax([3.0, 4.0])),
        (Clamped(500.0), softmax([60.0, 80.0])),
        (Tower(10.0, bias=-7.0), expit([-1.0, 1.0])),  # SigLIP: each class by itself
        (nn.Sequential(Tower(5.0)), softmax([3.0, 4.0])),  # a dual encoder inside another model
        (nn.Linear(1, 1), softmax([60.0, 80.0])),
    ],
)
def test_probabilities_are_at_the_models_own_scale(embedded: list[str], model: nn.Module, expected: np.ndarray) -> None:
    loaded: Any = SimpleNamespace(model=model, abilities={"embed"})
    assert embedding.classify(loaded, [None], ["cat", "dog"])[0] == pytest.approx(expected, rel=1e-5)  # type: ignore[list-item]


def test_class_vectors_are_computed_once_for_each_model_labels_and_templates(embedded: list[str]) -> None:
    loaded: Any = SimpleNamespace(model=Tower(5.0), abilities={"embed"})
    for _ in range(2):
        embedding.class_vectors(loaded, ["cat", "dog"], ["a {}"])
    assert embedded == ["a cat", "a dog"]
    embedding.class_vectors(loaded, ["cat", "dog"], ["the {}"])
    assert embedded[2:] == ["the cat", "the dog"]


@pytest.mark.parametrize("wrong", ["a photo", "{} and {}", "a {name}"])
def test_a_template_needs_one_place_for_the_name(wrong: str) -> None:
    with pytest.raises(RecipeError, match="must contain {} once"):
        load(EvaluateConfig, {"evaluate": {"class_templates": [wrong]}}, "evaluate")
