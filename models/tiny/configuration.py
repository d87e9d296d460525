"""Sizes of the sketch family."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class SketchConfig(PreTrainedConfig):
    """One config for the dual encoder and the language model that grows out of it.

    The sizes are what learns fastest on one CPU core from pictures of 64×64 pixels: a three-convolution
    stem of stride 8, a shallow transformer over 8×8 patches, and 16 image tokens after a 2×2 shuffle.
    """

    model_type = "sketch"

    image_size: int = 64
    stem_channels: tuple[int, ...] | list[int] = (16, 48)
    vision_width: int = 96
    vision_layers: int = 2
    vision_heads: int = 3
    shuffle: int = 2
    text_width: int = 96
    text_layers: int = 2
    text_heads: int = 3
    embedding_width: int = 128
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

    @property
    def patches(self) -> int:
        """Patches along one side, after a stem of stride 8."""
        return self.image_size // 8

    @property
    def image_tokens(self) -> int:
        """Tokens that one picture takes in the decoder's sequence."""
        return (self.patches // self.shuffle) ** 2
