"""Answer V1 instances other than prompts: each kind needs an ability of the model.

| instance | ability | answer |
|---|---|---|
| `image`, `prompt` | chat | `answer` |
| `image`, `labels` | classify | `label`, `probabilities` |
| `image`, `text` | match, or rank | `score`; a higher score is a better match |
| `text` with mask tokens, `image` if the model has an image encoder | fill | `words`, one for each mask |
| `image`, `reconstruct`: a seed | reconstruct | `image`, most patches hidden and predicted; `hidden`, their indices |
| `image` | embed, or represent | `embedding` |
| `text` | embed | `embedding` |
"""

import base64
import io
from typing import Any

from PIL import Image

from vlmflow.inference import loading, masked
from vlmflow.inference.loading import Loaded
from vlmflow.serving.request_images import parse_image

KEYS = ("image", "prompt", "labels", "text", "reconstruct")


def answer(loaded: Loaded, instance: dict[str, Any]) -> dict[str, Any]:
    """Answer an instance that has no prompt.

    Raises:
        ValueError: the model lacks the ability, or the image, text, labels or seed is invalid.
    """
    image = parse_image(instance["image"]) if "image" in instance else None
    if "text" in instance:
        return _answer_text(loaded, image, require_text(instance["text"], "text"))
    image = image or parse_image(None)  # raises: the image is missing
    if "labels" in instance:
        return _classify(loaded, image, instance["labels"])
    if "reconstruct" in instance:
        return _reconstruct(loaded, image, instance["reconstruct"])
    require_ability(loaded, "embed", "represent")
    embed = loading.embed_images if "embed" in loaded.abilities else masked.represent
    return {"embedding": embed(loaded, [image])[0].tolist()}


def _answer_text(loaded: Loaded, image: Image.Image | None, text: str) -> dict[str, Any]:
    mask = getattr(loaded.tokenizer, "mask_token", None)
    if mask and mask in text:
        require_ability(loaded, "fill")
        if image is None and loaded.image_processor is not None:
            raise ValueError("image: missing; this model needs the image to fill in masked words")
        return {"words": masked.fill(loaded, None if image is None else [image], [text])[0]}
    if image is None:
        require_ability(loaded, "embed")
        return {"embedding": loading.embed_texts(loaded, [text])[0].tolist()}
    require_ability(loaded, "match", "rank")
    if "match" in loaded.abilities:
        return {"score": float(masked.match(loaded, [image], [text])[0])}
    return {"score": float(loading.similarity(loaded, [image], [text])[0, 0])}


def _classify(loaded: Loaded, image: Image.Image, labels: Any) -> dict[str, Any]:
    require_ability(loaded, "classify")
    if not isinstance(labels, list) or len(labels) < 2:
        raise ValueError("labels: expected a list of at least two names")
    names = [require_text(label, "labels") for label in labels]
    (row,) = loading.classify(loaded, [image], names)
    probabilities = [float(p) for p in row]
    best = max(range(len(names)), key=probabilities.__getitem__)
    return {"label": names[best], "probabilities": dict(zip(names, probabilities, strict=True))}


def _reconstruct(loaded: Loaded, image: Image.Image, seed: Any) -> dict[str, Any]:
    require_ability(loaded, "reconstruct")
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
        raise ValueError(f"reconstruct: expected a seed, a whole number from 0, got {seed!r:.80}")
    hidden = masked.hide(loaded, 1, seed)
    painted = masked.reconstruct(loaded, [image], [""], hidden)
    buffer = io.BytesIO()
    masked.picture(loaded, painted[0]).save(buffer, "PNG")
    encoded = base64.b64encode(buffer.getvalue()).decode()
    return {"image": {"b64": encoded}, "hidden": hidden[0].nonzero()[:, 0].tolist()}


def require_ability(loaded: Loaded, *abilities: str) -> None:
    """Raises ValueError with the model's abilities if it has none of `abilities`."""
    if not loaded.abilities & set(abilities):
        supported = ", ".join(sorted(loaded.abilities))
        raise ValueError(f"this model cannot {' or '.join(abilities)}; it can {supported}")


def require_text(value: Any, name: str) -> str:
    """Return `value`, the field `name` of a request. Raises ValueError if it is not text."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name}: expected text, got {value!r:.80}")
    return value
