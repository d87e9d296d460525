"""Inputs of a model: the parts of its processor, caption batches, PIL images."""

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
from PIL import Image, ImageOps
from transformers import SiglipConfig

T = TypeVar("T")
MAX_CAPTION_TOKENS = 64


def image_processor(processor: Any) -> Any:
    """The image processor in `processor`, or `processor` itself if it is one; None for a text-only model."""
    part = getattr(processor, "image_processor", None)
    return processor if part is None and hasattr(processor, "image_mean") else part


def tokenizer(processor: Any) -> Any:
    """The tokenizer in `processor`, or `processor` itself if it is one; None for an image-only model."""
    part = getattr(processor, "tokenizer", None)
    return processor if part is None and hasattr(processor, "convert_tokens_to_ids") else part


def tokenize_captions(tokenizer: Any, config: Any, texts: Sequence[str] | list[list[str]]) -> Any:
    """Tokenize captions into one padded batch, truncated to the length of the text tower and to 64 tokens.

    Args:
        texts: captions, or each caption as a list of its words, so that the batch maps tokens to words.

    Returns:
        `input_ids` and `attention_mask`, (N, L); without the mask where captions are padded to the full length.
    """
    full_length = pads_to_full_length(config)
    batch = tokenizer(
        texts,
        padding="max_length" if full_length else True,
        truncation=True,
        max_length=max_caption_tokens(config),
        padding_side="right",
        is_split_into_words=bool(texts) and not isinstance(texts[0], str),
        return_token_type_ids=False,
        return_tensors="pt",
    )
    if full_length:
        batch.pop("attention_mask")
    return batch


def max_caption_tokens(config: Any) -> int:
    """The tokens to which captions are truncated: the length of the text tower, at most 64."""
    return min(MAX_CAPTION_TOKENS, config.get_text_config().max_position_embeddings)


def pads_to_full_length(config: Any) -> bool:
    """Whether the text tower pools its last position: then every caption is padded to the full length, unmasked.

    True for SigLIP, both transformers' own class and ours.
    """
    return isinstance(config, SiglipConfig)


def whole_image(image_processor: Any, image: Image.Image) -> Image.Image:
    """`image`, padded to a square if it is a strip, more than twice as long as wide, that the processor would crop.

    Such processors (LLaVA's) cut everything outside the central square, which is most of a line of text.
    """
    short, long = sorted(image.size)
    if not getattr(image_processor, "do_center_crop", False) or long <= 2 * short:
        return image
    return ImageOps.pad(image, (long, long))


def to_pil(image: Image.Image | np.ndarray) -> Image.Image:
    """A PIL image from a PIL image or a (H, W, 3) uint8 array."""
    return Image.fromarray(image) if isinstance(image, np.ndarray) else image


def batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Consecutive slices of `size` items; the last may be shorter."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
