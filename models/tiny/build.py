"""Build tiny models and their processors; importing this module registers the family with the Auto classes."""

from collections.abc import Iterable
from typing import Any

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from models.sizes import forwards_sizes_to
from models.tiny.configuration import TinyConfig
from models.tiny.dual_encoder import TinyDualEncoder
from models.tiny.language_model import TinyForConditionalGeneration
from models.tiny.processing import TinyProcessor
from models.tokenizer import build_tokenizer

TOWER_SIZES = ("image_size", "stem_", "vision_", "text_", "projection_dim", "vocab_size", "max_position_embeddings")

AutoConfig.register(TinyConfig.model_type, TinyConfig)
AutoModel.register(TinyConfig, TinyDualEncoder)
AutoModelForImageTextToText.register(TinyConfig, TinyForConditionalGeneration)
AutoProcessor.register(TinyConfig, TinyProcessor)


@forwards_sizes_to(TinyConfig)
def build_dual_encoder(texts: Iterable[str], **sizes: Any) -> tuple[TinyDualEncoder, TinyProcessor]:
    """Build a dual encoder and its processor, with a vocabulary from `texts`; sizes are fields of `TinyConfig`."""
    config, processor = _config_and_processor(texts, sizes)
    return TinyDualEncoder(config), processor


@forwards_sizes_to(TinyConfig)
def build_language_model(texts: Iterable[str], **sizes: Any) -> tuple[TinyForConditionalGeneration, TinyProcessor]:
    """Build a language model and its processor, with a vocabulary from `texts`; sizes are fields of `TinyConfig`."""
    config, processor = _config_and_processor(texts, sizes)
    model = TinyForConditionalGeneration(config)
    model.model.init_sinusoidal_positions(processor.tokenizer.convert_tokens_to_ids("<loc00>"))
    return model.train(), processor


@forwards_sizes_to(TinyConfig)
def from_dual_encoder(
    dual_encoder: TinyDualEncoder, processor: TinyProcessor, **sizes: Any
) -> tuple[TinyForConditionalGeneration, TinyProcessor]:
    """Build a language model on `dual_encoder`: it keeps the vocabulary and copies the weights; the decoder is new.

    Sizes are fields of `TinyConfig` and override those of the dual encoder, apart from the sizes of its towers.

    Raises:
        ValueError: a size of the towers differs from the dual encoder's.
    """
    for name, value in sizes.items():
        own = getattr(dual_encoder.config, name)
        if name.startswith(TOWER_SIZES) and value != own:
            raise ValueError(f"{name} {value}: the dual encoder has {own}; set it in pretrain.model")
    config = TinyConfig(**{**dual_encoder.config.to_dict(), **sizes, "architectures": None})
    model = TinyForConditionalGeneration(config)
    model.model.init_sinusoidal_positions(processor.tokenizer.convert_tokens_to_ids("<loc00>"))
    model.model.dual_encoder.load_state_dict(dual_encoder.state_dict(), strict=True)
    model.model.vision.load_state_dict(dual_encoder.vision.state_dict(), strict=True)
    return model.train(), processor


def _config_and_processor(texts: Iterable[str], sizes: dict[str, Any]) -> tuple[TinyConfig, TinyProcessor]:
    config = TinyConfig(**sizes)
    location_tokens = [f"<loc{i:02d}>" for i in range(config.location_bins)]
    tokenizer = build_tokenizer(texts, extra=location_tokens)
    config.vocab_size = len(tokenizer)
    size = {"height": config.image_size, "width": config.image_size}
    image_processor = SiglipImageProcessorPil(size=size, resample=2)  # bilinear
    return config, TinyProcessor(image_processor, tokenizer, image_tokens=config.image_tokens)
