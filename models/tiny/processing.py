"""The processor of the tiny family: images and conversations to tensors."""

from typing import Any

from transformers import BatchFeature, ProcessorMixin

from models.tokenizer import CHAT_TEMPLATE


class TinyProcessor(ProcessorMixin):
    """An image processor, a tokenizer and the number of tokens of an image.

    Args:
        image_processor: `SiglipImageProcessorPil`, which resizes the whole image to the model's square.
        tokenizer: see `models.tokenizer.build_tokenizer`.
        image_tokens: placeholders that replace `<image>`.
        box_convention: how the model writes boxes, a key of `vlmflow.images.boxes.CODECS`.
    """

    def __init__(
        self,
        image_processor: Any,
        tokenizer: Any,
        image_tokens: int = 16,
        box_convention: str = "tiny",
        chat_template: str | None = None,
        **_: Any,
    ):
        self.image_tokens, self.box_convention = image_tokens, box_convention
        super().__init__(image_processor, tokenizer, chat_template=chat_template or CHAT_TEMPLATE)

    def __call__(self, images: Any = None, text: Any = None, **kwargs: Any) -> BatchFeature:
        """Tokenize `text` and prepare `images` (an image, a list, or a list of lists, flattened in order)."""
        return_tensors = kwargs.pop("return_tensors", None)
        batch: dict[str, Any] = {}
        if text is not None:
            texts = [text] if isinstance(text, str) else list(text)
            texts = [t.replace("<image>", "<image>" * self.image_tokens) for t in texts]
            kwargs.pop("images_kwargs", None)
            kwargs.setdefault("add_special_tokens", False)
            batch.update(self.tokenizer(texts, return_tensors=return_tensors, return_token_type_ids=False, **kwargs))
        if images is not None:
            groups = images if isinstance(images, list | tuple) else [images]
            flat = [image for group in groups for image in (group if isinstance(group, list | tuple) else [group])]
            if flat:
                batch.update(self.image_processor(flat, return_tensors=return_tensors))
        return BatchFeature(batch, tensor_type=None)
