"""Answer V1 instances other than prompts: each kind needs an ability of the model.

| instance | ability | answer |
|---|---|---|
| `image`, `prompt` | chat | `answer` |
| `image`, `labels` | classify | `label`, `probabilities` |
| `image`, `text` | image_text_matching, or retrieval | `score`; a higher score is a better match |
| `text` with mask tokens, `image` if the model has an image encoder | fill_mask | `words`, one for each mask |
| `image`, `reconstruct`: a seed | reconstruct | `image`, most patches hidden and predicted; `hidden`, their indices |
| `image` | embed, or features | `embedding` |
| `text` | embed | `embedding` |
"""

import base64
import io
from typing import Any

from PIL import Image

from vlmflow.inference import embedding, masked
from vlmflow.inference.loading import LoadedModel
from vlmflow.serving.request_images import parse_image

KEYS = ("image", "prompt", "labels", "text", "reconstruct")


def answer(loaded: LoadedModel, instance: dict[str, Any]) -> dict[str, Any]:
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
    require_ability(loaded, "embed", "features")
    embed = embedding.embed_images if "embed" in loaded.abilities else masked.image_features
    return {"embedding": embed(loaded, [image])[0].tolist()}


def _answer_text(loaded: LoadedModel, image: Image.Image | None, text: str) -> dict[str, Any]:
    mask = getattr(loaded.tokenizer, "mask_token", None)
    if mask and mask in text:
        require_ability(loaded, "fill_mask")
        if image is None and loaded.image_processor is not None:
            raise ValueError("image: missing; this model needs the image to fill in masked words")
        return {"words": masked.fill_mask(loaded, None if image is None else [image], [text])[0]}
    if image is None:
        require_ability(loaded, "embed")
        return {"embedding": embedding.embed_texts(loaded, [text])[0].tolist()}
    require_ability(loaded, "image_text_matching", "retrieval")
    if "image_text_matching" in loaded.abilities:
        return {"score": float(masked.image_text_matching(loaded, [image], [text])[0])}
    return {"score": float(embedding.similarity(loaded, [image], [text])[0, 0])}


def _classify(loaded: LoadedModel, image: Image.Image, labels: Any) -> dict[str, Any]:
    require_ability(loaded, "classify")
    if not isinstance(labels, list) or len(labels) < 2:
        raise ValueError("labels: expected a list of at least two names")
    names = [require_text(label, "labels") for label in labels]
    (row,) = embedding.classify(loaded, [image], names)
    probabilities = [float(p) for p in row]
    best = max(range(len(names)), key=probabilities.__getitem__)
    return {"label": names[best], "probabilities": dict(zip(names, probabilities, strict=True))}


def _reconstruct(loaded: LoadedModel, image: Image.Image, seed: Any) -> dict[str, Any]:
    require_ability(loaded, "reconstruct")
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
        raise ValueError(f"reconstruct: expected a seed, a whole number from 0, got {seed!r:.80}")
    hidden = masked.random_patch_mask(loaded, 1, seed)
    predicted = masked.reconstruct(loaded, [image], [""], hidden)
    buffer = io.BytesIO()
    masked.to_image(loaded, predicted[0]).save(buffer, "PNG")
    encoded = base64.b64encode(buffer.getvalue()).decode()
    return {"image": {"b64": encoded}, "hidden": hidden[0].nonzero()[:, 0].tolist()}


def require_ability(loaded: LoadedModel, *abilities: str) -> None:
    """Raises ValueError with the model's abilities if it has none of `abilities`."""
    if not loaded.abilities & set(abilities):
        supported = ", ".join(sorted(loaded.abilities))
        raise ValueError(f"this model cannot {' or '.join(abilities)}; it can {supported}")


def require_text(value: Any, name: str) -> str:
    """Return `value`, the field `name` of a request. Raises ValueError if it is not text."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name}: expected text, got {value!r:.80}")
    return value
