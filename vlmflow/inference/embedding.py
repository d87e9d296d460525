"""Embeddings, image-text similarity and zero-shot classification."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from vlmflow.images.preprocessing import pixel_values
from vlmflow.inference.inputs import batches, to_pil, tokenize_captions
from vlmflow.inference.loading import LoadedModel

PROMPTS = ("a {}", "there is a {}", "a photo with a {}")  # templates of a zero-shot class


@torch.inference_mode()
def embed_images(loaded: LoadedModel, images: Sequence[Image.Image | np.ndarray], batch_size: int = 128) -> np.ndarray:
    """Unit vectors (N, D) of images, each a PIL image or a (H, W, 3) uint8 array."""
    rows = []
    for part in batches(images, batch_size):
        batch = pixel_values(loaded.image_processor, [to_pil(p) for p in part])
        features = _features(loaded.model.get_image_features(pixel_values=batch.to(loaded.model.device)))
        rows.append(F.normalize(features, dim=-1).float().cpu().numpy())
    return np.concatenate(rows)


@torch.inference_mode()
def embed_texts(loaded: LoadedModel, texts: Sequence[str], batch_size: int = 256) -> np.ndarray:
    """Unit vectors (N, D) of captions."""
    rows = []
    for part in batches(texts, batch_size):
        batch = tokenize_captions(loaded.tokenizer, loaded.model.config, list(part))
        features = _features(loaded.model.get_text_features(**batch.to(loaded.model.device)))
        rows.append(F.normalize(features, dim=-1).float().cpu().numpy())
    return np.concatenate(rows)


@torch.inference_mode()
def similarity(loaded: LoadedModel, images: Sequence[Image.Image | np.ndarray], texts: Sequence[str]) -> np.ndarray:
    """Scores (N, M) of every image with every text: cosines, or the model's own score if it has no embeddings."""
    if "embed" in loaded.abilities:
        return embed_images(loaded, images) @ embed_texts(loaded, texts).T
    tokens = tokenize_captions(loaded.tokenizer, loaded.model.config, list(texts)).to(loaded.model.device)
    rows = []
    for part in batches(images, 32):
        batch = pixel_values(loaded.image_processor, [to_pil(p) for p in part]).to(loaded.model.device)
        rows.append(loaded.model.similarity(pixel_values=batch, **tokens).float().cpu().numpy())
    return np.concatenate(rows)


def classify(loaded: LoadedModel, images: Sequence[Image.Image | np.ndarray], labels: Sequence[str]) -> np.ndarray:
    """Zero-shot class probabilities (N, C), with each class averaged over the prompt templates.

    Source: Radford et al. 2021, section 3.1.4 (prompt ensembling in embedding space).
    """
    if "embed" in loaded.abilities:
        logits = 100 * embed_images(loaded, images) @ class_vectors(loaded, labels).T
    else:
        texts = [prompt.format(label) for label in labels for prompt in PROMPTS]
        logits = similarity(loaded, images, texts).reshape(len(images), len(labels), -1).mean(2)
    exponent = np.exp(logits - logits.max(1, keepdims=True))
    return exponent / exponent.sum(1, keepdims=True)


def class_vectors(loaded: LoadedModel, labels: Sequence[str]) -> np.ndarray:
    """Unit vectors (C, D) of zero-shot classes, each the mean over the prompt templates."""
    texts = [prompt.format(label) for label in labels for prompt in PROMPTS]
    classes = embed_texts(loaded, texts).reshape(len(labels), len(PROMPTS), -1).mean(1)
    return classes / np.linalg.norm(classes, axis=1, keepdims=True)


def _features(output: Any) -> torch.Tensor:
    return output if isinstance(output, torch.Tensor) else output.pooler_output
