"""Idefics3 from transformers: SigLIP's picture tower, a pixel shuffle and a language model.

Source: Laurençon et al. 2024, "Building and better understanding vision-language models".
"""

from collections.abc import Iterable
from typing import Any

from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
    SiglipModel,
    SiglipProcessor,
)
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

from models import tokenizer as tokenizers
from models.tokenizer import CHAT_TEMPLATE

SPECIALS = ("<fake_token_around_image>", "<end_of_utterance>", "<global-img>")


def build(
    texts: Iterable[str],
    *,
    image_size: int = 364,
    patch_size: int = 14,
    vision_width: int = 1152,
    vision_layers: int = 27,
    width: int = 2048,
    layers: int = 24,
    heads: int = 16,
    scale_factor: int = 2,
) -> tuple[Idefics3ForConditionalGeneration, Idefics3Processor]:
    """A new model and its processor with a vocabulary made from `texts`; one square picture, not split."""
    tokenizer = tokenizers.build(texts, extra=SPECIALS)
    vision = {
        "hidden_size": vision_width,
        "intermediate_size": 4 * vision_width,
        "num_hidden_layers": vision_layers,
        "num_attention_heads": max(1, vision_width // 64),
        "image_size": image_size,
        "patch_size": patch_size,
    }
    return _assemble(tokenizer, vision, width, layers, heads, scale_factor)


def grow(
    dual: SiglipModel,
    processor: SiglipProcessor,
    *,
    width: int = 576,
    layers: int = 30,
    heads: int = 9,
    scale_factor: int = 2,
) -> tuple[Idefics3ForConditionalGeneration, Idefics3Processor]:
    """A language model whose picture tower is the SigLIP `dual`'s, weights and all, and its words too."""
    tokenizer = processor.tokenizer
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIALS)}, replace_extra_special_tokens=False)
    tokenizer.padding_side = "left"
    tower: Any = dual.config.vision_config
    vision = {k: v for k, v in tower.to_dict().items() if k not in ("model_type", "vision_use_head")}
    model, made = _assemble(tokenizer, vision, width, layers, heads, scale_factor)
    weights = {k: v for k, v in dual.vision_model.state_dict().items() if not k.startswith("head.")}
    model.model.vision_model.load_state_dict(weights, strict=True)
    return model, made


def _assemble(
    tokenizer: Any, vision: dict[str, Any], width: int, layers: int, heads: int, scale_factor: int
) -> tuple[Idefics3ForConditionalGeneration, Idefics3Processor]:
    side = vision["image_size"]
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    special = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    settings: dict[str, Any] = {"pad_token_id": 0}
    config = Idefics3Config(
        image_token_id=image_token,
        **settings,
        scale_factor=scale_factor,
        vision_config=vision,
        text_config={
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "max_position_embeddings": 1024,
            **special,
        },
    )
    square = {"longest_edge": side}
    pictures = Idefics3ImageProcessorPil(do_image_splitting=False, size=square, max_image_size=square)
    length = (side // vision["patch_size"]) ** 2 // scale_factor**2
    processor = Idefics3Processor(pictures, tokenizer, image_seq_len=length, chat_template=CHAT_TEMPLATE)
    model = Idefics3ForConditionalGeneration(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = 0
    return model, processor
