"""Configuration of the tiny family."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class TinyConfig(PreTrainedConfig):
    """One config for the dual encoder and for the language model that is built on it.

    The default sizes learn fastest on one CPU core from images of 64×64 pixels: a stem of three convolutions with a
    total stride of 8, a shallow transformer over 8×8 patches, and 16 image tokens after a 2×2 pixel shuffle.
    """

    model_type = "vlmflow-tiny"
    takes_raw_pixels = True  # uint8 images, squeezed to a square; the model normalises them itself
    packs_turns = True  # trains on all turns about an image in one sequence, behind one copy of its tokens

    image_size: int = 64
    stem_channels: tuple[int, ...] | list[int] = (16, 48)
    vision_hidden_size: int = 96
    vision_layers: int = 2
    vision_heads: int = 3
    scale_factor: int = 2
    text_hidden_size: int = 96
    text_layers: int = 2
    text_heads: int = 3
    projection_dim: int = 128
    hidden_size: int = 128
    num_hidden_layers: int = 3
    num_attention_heads: int = 4
    mlp_ratio: int = 2
    vocab_size: int = 512
    max_position_embeddings: int = 256
    location_bins: int = 64
    image_token_id: int = 3
    bos_token_id: int | None = None
    pad_token_id: int = 0
    eos_token_id: int | list[int] | None = 2
    tie_word_embeddings: bool = True

    def validate_architecture(self) -> None:
        """Raises: ValueError for an image that is no whole number of tokens, or that leaves no position for text."""
        cell = 8 * self.scale_factor
        if self.image_size % cell:
            raise ValueError(f"image_size must be a multiple of {cell} pixels, got {self.image_size}")
        if self.image_tokens >= self.max_position_embeddings:
            raise ValueError(
                f"an image of {self.image_size} pixels has {self.image_tokens} tokens, which leave no room for text in "
                f"{self.max_position_embeddings} positions; increase max_position_embeddings or reduce image_size"
            )

    @property
    def patches_per_side(self) -> int:
        """Patches along one side of the image, after the stem's total stride of 8."""
        return self.image_size // 8

    @property
    def image_tokens(self) -> int:
        """Tokens of one image in the decoder's sequence, after the pixel shuffle."""
        return (self.patches_per_side // self.scale_factor) ** 2
