"""Our own small family: learns in minutes on a CPU, and is a Hugging Face model in every other way.

configuration.py   one config
blocks.py          the transformer block
dual_encoder.py    pictures and captions in one space
language_model.py  a decoder over the dual encoder's picture tower
processing.py      pictures and conversations to tensors
packing.py         many turns behind one picture, for training
"""

from collections.abc import Iterable
from typing import Any

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from models import tokenizer as tokenizers
from models.sizes import declared
from models.tiny.configuration import SketchConfig
from models.tiny.dual_encoder import SketchDualEncoder
from models.tiny.language_model import SketchForConditionalGeneration
from models.tiny.processing import SketchProcessor

AutoConfig.register("sketch", SketchConfig)
AutoModel.register(SketchConfig, SketchDualEncoder)
AutoModelForImageTextToText.register(SketchConfig, SketchForConditionalGeneration)
AutoProcessor.register(SketchConfig, SketchProcessor)


def build_dual_encoder(texts: Iterable[str], **sizes: Any) -> tuple[SketchDualEncoder, SketchProcessor]:
    """A new dual encoder and its processor, with a vocabulary made from `texts`."""
    config, processor = _config(texts, sizes)
    return SketchDualEncoder(config), processor


def build_language_model(texts: Iterable[str], **sizes: Any) -> tuple[SketchForConditionalGeneration, SketchProcessor]:
    """A new language model and its processor, with a vocabulary made from `texts`."""
    config, processor = _config(texts, sizes)
    model = SketchForConditionalGeneration(config)
    model.model.place_waves(processor.tokenizer.convert_tokens_to_ids("<loc00>"))
    return model.train(), processor


def grow(
    dual: SketchDualEncoder, processor: SketchProcessor, **sizes: Any
) -> tuple[SketchForConditionalGeneration, SketchProcessor]:
    """A language model whose dual encoder is `dual`, weights and vocabulary and all; the decoder is new."""
    given = declared(SketchConfig, sizes)
    config = SketchConfig(**{**dual.config.to_dict(), **given, "architectures": None})
    model = SketchForConditionalGeneration(config)
    model.model.place_waves(processor.tokenizer.convert_tokens_to_ids("<loc00>"))
    model.model.dual.load_state_dict(dual.state_dict(), strict=True)
    model.model.vision.load_state_dict(dual.vision.state_dict(), strict=True)
    return model.train(), processor


def _config(texts: Iterable[str], sizes: dict[str, Any]) -> tuple[SketchConfig, SketchProcessor]:
    config = SketchConfig(**declared(SketchConfig, sizes))
    locations = [f"<loc{i:02d}>" for i in range(config.location_bins)]
    tokenizer = tokenizers.build(texts, extra=locations)
    config.vocab_size = len(tokenizer)
    side = {"height": config.image_size, "width": config.image_size}
    pictures = SiglipImageProcessorPil(size=side, resample=2)  # bilinear
    return config, SketchProcessor(pictures, tokenizer, image_tokens=config.image_tokens)


__all__ = [
    "SketchConfig",
    "SketchDualEncoder",
    "SketchForConditionalGeneration",
    "SketchProcessor",
    "build_dual_encoder",
    "build_language_model",
    "grow",
]
