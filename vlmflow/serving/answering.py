"""Answer prompts about images, with boxes in pixels of the image as sent. All protocols answer prompts here."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from vlmflow.images import boxes
from vlmflow.inference import generation
from vlmflow.inference.generation import Answer
from vlmflow.inference.loading import LoadedModel
from vlmflow.serving.request_images import MAX_REQUEST_PIXELS, ImageReader, RequestImage

MAX_NEW_TOKENS = 64  # unless the request sets it
MAX_CHARACTERS = 20_000  # of one text; tokenizing a longer one takes long even if it is then rejected


def image_reader(loaded: LoadedModel, budget: int = MAX_REQUEST_PIXELS) -> ImageReader:
    """A reader for the images of one request, at three times the size that the model takes or more."""
    sizes = [dict(getattr(loaded.image_processor, name, None) or {}) for name in ("size", "crop_size")]
    sides = [side for size in sizes for side in size.values() if isinstance(side, int)]
    return ImageReader(min(3 * max(sides, default=1024), 4096), budget)


def answer_prompts(
    loaded: LoadedModel, questions: Sequence[tuple[Any, Any]], reader: ImageReader, **options: Any
) -> list[Answer]:
    """Answer each question, an image for `reader` and a prompt, as one batch.

    A `<box>x0,y0,x1,y1</box>` of a prompt or an answer is in pixels of the upright image at the size it was sent.

    Args:
        options: max_new_tokens, temperature, seed.

    Raises:
        ValueError: the model cannot chat, an image cannot be read, or a prompt contains one of the model's control
            tokens or a box outside its image, or is too long.
    """
    require_ability(loaded, "chat")
    prompts = [_check_prompt(loaded, prompt) for _, prompt in questions]
    images = [reader.read(image) for image, _ in questions]
    convention = loaded.box_convention
    prompts = [_transcode(prompt, convention, image) for prompt, image in zip(prompts, images, strict=True)]
    for prompt in prompts:
        _check_length(loaded, prompt, options["max_new_tokens"])
    answers = generation.generate(loaded, [image.pixels for image in images], prompts, **options)
    return [
        replace(answer, text=boxes.to_pixels(answer.text, convention, image.width, image.height))
        for answer, image in zip(answers, images, strict=True)
    ]


def require_ability(loaded: LoadedModel, *abilities: str) -> None:
    """Raises ValueError with the model's abilities if it has none of `abilities`."""
    if not loaded.abilities & set(abilities):
        supported = ", ".join(sorted(loaded.abilities))
        raise ValueError(f"this model cannot {' or '.join(abilities)}; it can {supported}")


def require_text(value: Any, name: str, longest: int = MAX_CHARACTERS) -> str:
    """Return `value`, the field `name` of a request. Raises ValueError if it is not text, or longer than `longest`."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name}: expected text, got {value!r:.80}")
    if len(value) > longest:
        raise ValueError(f"{name}: too long: {len(value)} characters; at most {longest} are allowed")
    return value


def _check_prompt(loaded: LoadedModel, value: Any) -> str:
    prompt = require_text(value, "prompt")
    if control_tokens := [token for token in loaded.processor.tokenizer.all_special_tokens if token in prompt]:
        raise ValueError(f"prompt: {control_tokens[0]!r} is a control token of the model; leave it out")
    return prompt


def _transcode(prompt: str, convention: str, image: RequestImage) -> str:
    for match in boxes.CANONICAL.finditer(prompt):
        x0, y0, x1, y1 = map(float, match.groups())
        if not (0 <= x0 <= x1 <= image.width and 0 <= y0 <= y1 <= image.height):
            raise ValueError(
                f"prompt: {match.group()!r:.80} is outside the image of {image.width}×{image.height} pixels"
            )
    return boxes.transcode(prompt, convention, image.width, image.height)


def _check_length(loaded: LoadedModel, prompt: str, max_new_tokens: int) -> None:
    processor = loaded.processor
    limit = getattr(loaded.model.config.get_text_config(), "max_position_embeddings", None)
    image_tokens = getattr(processor, "image_tokens", None) or getattr(processor, "image_seq_len", 0)
    length = len(processor.tokenizer(generation.chat_prompt(processor, prompt))["input_ids"]) + image_tokens
    if limit is not None and length + max_new_tokens > limit:
        raise ValueError(
            f"prompt: too long: {length} tokens and {max_new_tokens} new ones exceed the model's limit of {limit}"
        )
