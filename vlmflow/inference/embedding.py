"""Embeddings, image-text similarity and zero-shot classification."""

from collections.abc import MutableMapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from PIL import Image
from scipy.special import expit, softmax
from torch.nn import functional as F

from vlmflow.images.preprocessing import pixel_values
from vlmflow.inference.inputs import batches, to_pil, tokenize_captions
from vlmflow.inference.loading import LoadedModel
from vlmflow.inference.prompts import CLASS_TEMPLATES

KEPT_CLASS_SETS = 16  # of each model
_class_vectors: MutableMapping[Any, dict[tuple[tuple[str, ...], ...], np.ndarray]] = WeakKeyDictionary()


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


def classify(
    loaded: LoadedModel,
    images: Sequence[Image.Image | np.ndarray],
    labels: Sequence[str],
    templates: Sequence[str] = CLASS_TEMPLATES,
) -> np.ndarray:
    """Zero-shot class probabilities (N, C), with each class averaged over the templates, at the model's own scale.

    The classes exclude each other (softmax), except for a model with a bias: SigLIP and Llip judge each class by itself
    (sigmoid), so that an image of no class has no likely class.

    Args:
        templates: texts with `{}` for the name of the class.

    Source: Radford et al. 2021, section 3.1.4 (prompt ensembling in embedding space); Zhai et al. 2023, section 3.2.
    """
    if "embed" in loaded.abilities:
        scale, bias = _scale_and_bias(loaded.model)
        logits = scale * embed_images(loaded, images) @ class_vectors(loaded, labels, templates).T + (bias or 0.0)
    else:
        texts = [template.format(label) for label in labels for template in templates]
        logits = similarity(loaded, images, texts).reshape(len(images), len(labels), -1).mean(2)
        bias = getattr(loaded.model, "logit_bias", None)
    return expit(logits) if bias is not None else softmax(logits, axis=1)


def class_vectors(loaded: LoadedModel, labels: Sequence[str], templates: Sequence[str] = CLASS_TEMPLATES) -> np.ndarray:
    """Unit vectors (C, D) of zero-shot classes, each the mean over the templates; those of the last sets are kept."""
    known = _class_vectors.setdefault(loaded.model, {})
    key = tuple(labels), tuple(templates)
    if key not in known:
        texts = [template.format(label) for label in labels for template in templates]
        classes = embed_texts(loaded, texts).reshape(len(labels), len(templates), -1).mean(1)
        known[key] = classes / np.linalg.norm(classes, axis=1, keepdims=True)
        while len(known) > KEPT_CLASS_SETS:
            known.pop(next(iter(known)), None)
    return known[key]


def _scale_and_bias(model: Any) -> tuple[float, float | None]:
    """The factor on cosines that the model was trained with, and SigLIP's bias; 100, CLIP's limit, if it has none."""
    for module in (model, *model.modules()):
        if hasattr(module, "logit_scale"):
            scale = module.scale if hasattr(type(module), "scale") else module.logit_scale.exp()
            bias = getattr(module, "logit_bias", None)
            return scale.item(), None if bias is None else bias.item()
    return 100.0, None


def _features(output: Any) -> torch.Tensor:
    return output if isinstance(output, torch.Tensor) else output.pooler_output
