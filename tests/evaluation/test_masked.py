"""Matching, fill-mask, reconstruction and probes on models whose answers are known."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from models.tokenizer import build_tokenizer
from vlmflow.evaluation import masked
from vlmflow.evaluation.suites import _different_captions, choose_hidden_word
from vlmflow.inference import masked as fill_mask
from vlmflow.inference.loading import LoadedModel

COLOURS = {"red": (250, 10, 10), "green": (10, 250, 10), "blue": (10, 10, 250)}
IMAGES = [Image.new("RGB", (20, 20), colour) for colour in COLOURS.values()] * 4
NAMES = list(COLOURS) * 4
CAPTIONS = [f"a {name} square" for name in NAMES]
TOKENIZER = build_tokenizer(CAPTIONS, extra=("<cls>", "<mask>"), frame="<cls> $A")
SIDE = {"height": 16, "width": 16}
PROCESSOR = SimpleNamespace(image_processor=CLIPImageProcessorPil(size=SIDE, do_center_crop=False), tokenizer=TOKENIZER)


class Oracle:
    """A model that predicts the mean colour of the image."""

    device = torch.device("cpu")
    config: Any = SimpleNamespace(
        model_type="oracle", image_size=16, patch_size=4, mask_ratio=0.75,
        get_text_config=lambda: SimpleNamespace(max_position_embeddings=16),
    )  # fmt: skip
    ids = torch.tensor([TOKENIZER.convert_tokens_to_ids(f"▁{name}") for name in COLOURS])

    def fill_mask(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, pixel_values: torch.Tensor
    ) -> torch.Tensor:
        logits = torch.nn.functional.one_hot(input_ids, len(TOKENIZER)).float()
        masks: Any = input_ids == TOKENIZER.mask_token_id
        logits[masks] = 0
        colour = self.ids[pixel_values.mean((2, 3)).argmax(1)]
        logits.scatter_add_(2, colour[:, None, None].expand(-1, input_ids.shape[1], 1), masks.float()[..., None])
        return logits

    def match_score(
        self, pixel_values: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> torch.Tensor:
        colour = self.ids[pixel_values.mean((2, 3)).argmax(1)]
        return (input_ids == colour[:, None]).any(1).float()

    def reconstruct(self, pixel_values: torch.Tensor, patch_mask: torch.Tensor, **_: Any) -> torch.Tensor:
        return pixel_values

    def get_image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return pixel_values.mean((2, 3))


LOADED = LoadedModel(
    Oracle(), PROCESSOR, {}, frozenset({"fill_mask", "image_text_matching", "reconstruct", "features"})
)
SHIFTED = IMAGES[1:] + IMAGES[:1]


def test_fill_mask_finds_a_word_from_the_image() -> None:
    items = [(caption, 1) for caption in CAPTIONS]
    assert masked.fill_mask_accuracy(LOADED, IMAGES, items).score.tolist() == [1] * 12
    assert masked.fill_mask_accuracy(LOADED, SHIFTED, items).score.sum() == 0
    assert fill_mask.fill_mask(LOADED, IMAGES[:2], ["a <mask> square", "<mask>"]) == [["red"], ["green"]]
    with pytest.raises(ValueError, match="has no <mask>"):
        fill_mask.fill_mask(LOADED, IMAGES[:1], ["a red square"])
    with pytest.raises(ValueError, match=r"has a <mask> after the limit of \d+ tokens"):
        fill_mask.fill_mask(LOADED, IMAGES[:1], ["a red square " * 200 + "<mask>"])


def test_fill_mask_counts_a_word_only_if_all_its_tokens_are_correct() -> None:
    """`reddish` has several tokens: predicting the same colour for each of them is a miss."""
    assert masked.fill_mask_accuracy(LOADED, IMAGES[:1], [("a reddish square", 1)]).score.tolist() == [0]


def test_matching_requires_a_strictly_higher_score_of_the_own_caption() -> None:
    items = list(zip(CAPTIONS, _different_captions(CAPTIONS), strict=True))
    assert masked.matching_accuracy(LOADED, IMAGES, items).score.mean() == 1
    assert masked.matching_accuracy(LOADED, SHIFTED, items).score.mean() == 0
    same = [("a square", "the square")] * 12
    assert masked.matching_accuracy(LOADED, IMAGES, same).score.sum() == 0, "a tie is a miss"


def test_reconstruction_is_relative_to_the_mean_of_the_visible_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    noisy = [Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)) for _ in range(8)]
    items = [(image, "") for image in noisy]

    def value(images: list[Image.Image]) -> float:
        found = masked.reconstruction(LOADED, images, items, seed=0)
        return found.score.sum() / found.weight.sum()

    assert value(noisy) == pytest.approx(1)
    assert value(noisy[1:] + noisy[:1]) < -0.5, "the noise of another image is worse than the mean"

    def grey(self: Any, pixel_values: torch.Tensor, patch_mask: torch.Tensor, **_: Any) -> torch.Tensor:
        shown = (~patch_mask).view(-1, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
        mean = (pixel_values * shown).sum((2, 3)) / shown.sum((2, 3))
        return mean[..., None, None].expand_as(pixel_values)

    monkeypatch.setattr(Oracle, "reconstruct", grey)
    assert value(noisy) == pytest.approx(0, abs=1e-6)


def test_the_patch_mask_has_the_models_mask_ratio_and_depends_on_the_seed() -> None:
    hidden = fill_mask.random_patch_mask(LOADED, 5, seed=3)
    assert hidden.shape == (5, 16) and (hidden.sum(1) == 12).all()
    assert torch.equal(hidden, fill_mask.random_patch_mask(LOADED, 5, seed=3))
    assert not torch.equal(hidden, fill_mask.random_patch_mask(LOADED, 5, seed=4))


def test_probes_classify_by_the_image_features() -> None:
    probe = masked.Probe(LOADED, IMAGES, NAMES)
    for found in (probe(LOADED, IMAGES, NAMES), probe(LOADED, SHIFTED, NAMES)):
        assert set(found) == {"linear probe", "nearest neighbours"}
    assert all(result.score.mean() == 1 for result in probe(LOADED, IMAGES, NAMES).values())
    assert all(result.score.mean() == 0 for result in probe(LOADED, SHIFTED, NAMES).values())


def test_the_hidden_word_is_a_content_word() -> None:
    words = {choose_hidden_word({"uid": str(i), "caption": "there is a red circle"}, 0) for i in range(20)}
    assert words == {3, 4}
    assert choose_hidden_word({"uid": "0", "caption": "there is a"}, 0) is None


def test_a_mask_token_replaces_a_word_and_its_space() -> None:
    whole, hidden = TOKENIZER("a red square")["input_ids"], TOKENIZER("a <mask> square")["input_ids"]
    assert len(whole) == len(hidden) and [a for a, b in zip(whole, hidden, strict=True) if a != b] == [whole[2]]
