"""Pictures and conversations to tensors, as the sketch family wants them."""

from typing import Any

from transformers import BatchFeature, ProcessorMixin

from models.tokenizer import CHAT_TEMPLATE


class SketchProcessor(ProcessorMixin):
    """An image processor, a tokenizer and the number of tokens that a picture takes.

    Args:
        image_processor: `SiglipImageProcessorPil`: the whole picture squeezed to the model's square.
        tokenizer: see `models.tokenizer.build`.
        image_tokens: placeholders that `<image>` is written out to.
        box_convention: how the model says a place (see the codecs of boxes).
    """

    def __init__(
        self,
        image_processor: Any,
        tokenizer: Any,
        image_tokens: int = 16,
        box_convention: str = "sketch",
        chat_template: str | None = None,
        **_: Any,
    ):
        self.image_tokens, self.box_convention = image_tokens, box_convention
        super().__init__(image_processor, tokenizer, chat_template=chat_template or CHAT_TEMPLATE)

    def __call__(self, images: Any = None, text: Any = None, **kwargs: Any) -> BatchFeature:
        """Tokenize `text` and prepare `images` (a picture, a list, or a list of lists, flattened in order)."""
        return_tensors = kwargs.pop("return_tensors", None)
        batch: dict[str, Any] = {}
        if text is not None:
            texts = [text] if isinstance(text, str) else list(text)
            texts = [t.replace("<image>", "<image>" * self.image_tokens) for t in texts]
            kwargs.pop("images_kwargs", None)
            kwargs.setdefault("add_special_tokens", False)
            batch.update(self.tokenizer(texts, return_tensors=return_tensors, return_token_type_ids=False, **kwargs))
        if images is not None:
            images = images if isinstance(images, list | tuple) else [images]
            flat = [p for group in images for p in (group if isinstance(group, list | tuple) else [group])]
            if flat:
                batch.update(self.image_processor(flat, return_tensors=return_tensors))
        return BatchFeature(batch, tensor_type=None)
