"""Idefics3 from transformers: SigLIP's vision tower, a pixel shuffle and a language model.

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

from models.tokenizer import CHAT_TEMPLATE, build_tokenizer

SPECIALS = ("<fake_token_around_image>", "<end_of_utterance>", "<global-img>")


def build(
    texts: Iterable[str],
    *,
    image_size: int = 364,
    patch_size: int = 14,
    vision_hidden_size: int = 1152,
    vision_layers: int = 27,
    hidden_size: int = 2048,
    layers: int = 24,
    heads: int = 16,
    scale_factor: int = 2,
) -> tuple[Idefics3ForConditionalGeneration, Idefics3Processor]:
    """Build a model and its processor, with a vocabulary from `texts`; an image is one square, not split into tiles."""
    tokenizer = build_tokenizer(texts, extra=SPECIALS)
    vision = {
        "hidden_size": vision_hidden_size,
        "intermediate_size": 4 * vision_hidden_size,
        "num_hidden_layers": vision_layers,
        "num_attention_heads": max(1, vision_hidden_size // 64),
        "image_size": image_size,
        "patch_size": patch_size,
    }
    return _assemble(tokenizer, vision, hidden_size, layers, heads, scale_factor)


def from_dual_encoder(
    dual_encoder: SiglipModel,
    processor: SiglipProcessor,
    *,
    hidden_size: int = 576,
    layers: int = 30,
    heads: int = 9,
    scale_factor: int = 2,
) -> tuple[Idefics3ForConditionalGeneration, Idefics3Processor]:
    """Build a language model with the vision tower and the vocabulary of a SigLIP; the language model is new."""
    tokenizer = processor.tokenizer
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIALS)}, replace_extra_special_tokens=False)
    tokenizer.padding_side = "left"
    tower: Any = dual_encoder.config.vision_config
    vision = {k: v for k, v in tower.to_dict().items() if k not in ("model_type", "vision_use_head")}
    model, new_processor = _assemble(tokenizer, vision, hidden_size, layers, heads, scale_factor)
    weights = {k: v for k, v in dual_encoder.vision_model.state_dict().items() if not k.startswith("head.")}
    model.model.vision_model.load_state_dict(weights, strict=True)
    return model, new_processor


def _assemble(
    tokenizer: Any, vision: dict[str, Any], hidden_size: int, layers: int, heads: int, scale_factor: int
) -> tuple[Idefics3ForConditionalGeneration, Idefics3Processor]:
    side = vision["image_size"]
    text: dict[str, Any] = {
        "model_type": "llama",
        "vocab_size": len(tokenizer),
        "hidden_size": hidden_size,
        "intermediate_size": 4 * hidden_size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "max_position_embeddings": 1024,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
    }
    padding: dict[str, Any] = {"pad_token_id": 0}
    config = Idefics3Config(
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        **padding,
        scale_factor=scale_factor,
        vision_config=vision,
        text_config=text,
    )
    square = {"longest_edge": side}
    image_processor = Idefics3ImageProcessorPil(do_image_splitting=False, size=square, max_image_size=square)
    image_tokens = (side // vision["patch_size"]) ** 2 // scale_factor**2
    processor = Idefics3Processor(image_processor, tokenizer, image_seq_len=image_tokens, chat_template=CHAT_TEMPLATE)
    model = Idefics3ForConditionalGeneration(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = 0
    return model, processor
