"""Masked and fusion models: fill masked words, match images and texts, reconstruct patches, map attention."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from vlmflow.images.preprocessing import denormalize, pixel_values
from vlmflow.inference.inputs import tokenize_captions
from vlmflow.inference.loading import LoadedModel

BATCH = 64


@torch.inference_mode()
def image_text_matching(loaded: LoadedModel, images: Sequence[Image.Image], texts: Sequence[str]) -> np.ndarray:
    """Scores (N,) of image i with text i; higher is a better match."""
    found = []
    for start in range(0, len(texts), BATCH):
        part = slice(start, start + BATCH)
        inputs = prepare_inputs(loaded, images[part], texts[part])
        found.append(loaded.model.match_score(**inputs).float().cpu().numpy())
    return np.concatenate(found)


@torch.inference_mode()
def fill_mask(loaded: LoadedModel, images: Sequence[Image.Image] | None, texts: Sequence[str]) -> list[list[str]]:
    """The most likely token for every mask token of each text, in order.

    Args:
        images: one for each text, or None for a text-only model.

    Raises:
        ValueError: a text has no mask token, or one after the truncation length.
    """
    mask, answers = loaded.tokenizer.mask_token, []
    for text in texts:
        if mask not in text:
            raise ValueError(f"text: {text!r:.80} has no {mask}; put one in place of each word to predict")
    for start in range(0, len(texts), BATCH):
        part = slice(start, start + BATCH)
        given = prepare_inputs(loaded, images and images[part], texts[part])
        best = loaded.model.fill_mask(**given).argmax(-1)
        for text, ids, row in zip(texts[part], given["input_ids"], best, strict=True):
            places = (ids == loaded.tokenizer.mask_token_id).nonzero()[:, 0]
            if len(places) < text.count(mask):
                raise ValueError(f"text: {text!r:.80} has a {mask} after the limit of {len(ids)} tokens; shorten it")
            answers.append([loaded.tokenizer.decode([int(row[place])]).strip() for place in places])
    return answers


@torch.inference_mode()
def words_recovered(
    loaded: LoadedModel, images: Sequence[Image.Image] | None, texts: Sequence[str], hidden: Sequence[int]
) -> np.ndarray:
    """Whether word number `hidden` (split at spaces) of each text is predicted with all its tokens masked, (N,)."""
    found = []
    for start in range(0, len(texts), BATCH):
        part = slice(start, start + BATCH)
        given, truth, masked = mask_words(loaded, images and images[part], texts[part], hidden[part])
        right = (loaded.model.fill_mask(**given).argmax(-1) == truth) | ~masked
        found.append((right.all(1) & masked.any(1)).cpu().numpy())
    return np.concatenate(found)


def mask_words(
    loaded: LoadedModel, images: Sequence[Image.Image] | None, texts: Sequence[str], hidden: Sequence[int]
) -> tuple[dict[str, Any], torch.Tensor, torch.Tensor]:
    """The inputs with word number `hidden` of each text masked, the true token ids, and the mask, both (N, L)."""
    given = prepare_inputs(loaded, images, texts, [text.split() for text in texts])
    encoded = given.pop("encoded")
    truth = given["input_ids"].clone()
    masked = torch.zeros_like(truth, dtype=torch.bool)
    for row, word in enumerate(hidden):
        masked[row] = torch.tensor([place == word for place in encoded.word_ids(row)])
    given["input_ids"][masked] = loaded.tokenizer.mask_token_id
    return given, truth, masked


@torch.inference_mode()
def attention_maps(
    loaded: LoadedModel, images: Sequence[Image.Image], texts: Sequence[str], hidden: Sequence[int] | None = None
) -> np.ndarray:
    """Attention of text i to each patch of image i: (N, side, side), with a sum of at most 1.

    With `hidden`, it is the attention of that word (by number, split at spaces), masked: an unmasked word need not
    attend to the image.
    """
    if hidden is None:
        return loaded.model.attention_maps(**prepare_inputs(loaded, images, texts))[:, 0].float().cpu().numpy()
    given, _, masked = mask_words(loaded, images, texts, hidden)
    share = masked / masked.sum(1, keepdim=True).clamp(min=1)  # (N, L): a word may be several tokens
    return torch.einsum("nl,nlyx->nyx", share, loaded.model.attention_maps(**given).float()).cpu().numpy()


def random_patch_mask(loaded: LoadedModel, count: int, seed: int) -> torch.Tensor:
    """A random patch mask, (count, P) bool, with the model's own mask ratio; True is masked."""
    config = loaded.model.config
    patches = (config.image_size // config.patch_size) ** 2
    shown = int(patches * (1 - config.mask_ratio))
    order = torch.rand(count, patches, generator=torch.Generator().manual_seed(seed)).argsort(1)
    return order >= shown


@torch.inference_mode()
def reconstruct(
    loaded: LoadedModel, images: Sequence[Image.Image], texts: Sequence[str] | None, hidden: torch.Tensor
) -> torch.Tensor:
    """Images with the masked patches predicted by the model: (N, 3, H, W) float32, normalised."""
    painted = []
    for start in range(0, len(images), BATCH):
        part = slice(start, start + BATCH)
        given = prepare_inputs(loaded, images[part], texts[part] if texts and loaded.tokenizer else None)
        painted.append(loaded.model.reconstruct(patch_mask=hidden[part].to(loaded.model.device), **given).float().cpu())
    return torch.cat(painted)


@torch.inference_mode()
def image_features(loaded: LoadedModel, images: Sequence[Image.Image]) -> np.ndarray:
    """Feature vectors (N, D) of images, not normalised, as inputs of other models."""
    found = []
    for start in range(0, len(images), BATCH):
        given = prepare_inputs(loaded, images[start : start + BATCH], None)
        features: Any = loaded.model.get_image_features(**given)
        features = features if isinstance(features, torch.Tensor) else features.pooler_output
        found.append(features.float().cpu().numpy())
    return np.concatenate(found)


def to_image(loaded: LoadedModel, normalised: torch.Tensor) -> Image.Image:
    """A PIL image from a normalised tensor (3, H, W)."""
    return Image.fromarray(denormalize(loaded.image_processor, normalised[None])[0].permute(1, 2, 0).numpy())


def prepare_inputs(
    loaded: LoadedModel,
    images: Sequence[Image.Image] | None,
    texts: Sequence[str] | None,
    words: list[list[str]] | None = None,
) -> dict[str, Any]:
    """The model's inputs on its device; with `words`, texts are split into words, which `encoded` maps to tokens."""
    device, given = loaded.model.device, {}
    if images is not None and loaded.image_processor is not None:
        given["pixel_values"] = pixel_values(loaded.image_processor, images).to(device)
    if texts is not None and loaded.tokenizer is not None:
        encoded = tokenize_captions(loaded.tokenizer, loaded.model.config, words or list(texts))
        given.update({name: value.to(device) for name, value in encoded.items()})
        if words:
            given["encoded"] = encoded
    return given
