"""Answer the instances of a V1 request: each kind needs an ability of the model.

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
from vlmflow.serving.answering import answer_prompts, image_reader, require_ability, require_text
from vlmflow.serving.request_images import ImageReader

MAX_INSTANCES = 64  # in one request
MAX_LABELS = 1_000  # in all instances of a request
MAX_LABEL_CHARACTERS = 200

_QUESTIONS = ("prompt", "labels", "text", "reconstruct")


def answer_instances(loaded: LoadedModel, instances: list[dict[str, Any]], **options: Any) -> list[dict[str, Any]]:
    """Answer all prompts as one batch and the other instances one by one; results keep the instances' order.

    Args:
        options: max_new_tokens of the prompts.

    Raises:
        ValueError: the model lacks the ability, or an image, text, label or seed is invalid.
    """
    _check(instances)
    reader, results = image_reader(loaded), [{} for _ in instances]
    prompts = [index for index, instance in enumerate(instances) if "prompt" in instance]
    for index, instance in enumerate(instances):
        if "prompt" not in instance:
            results[index] = answer(loaded, instance, reader)
    if prompts:
        questions = [(instances[index].get("image"), instances[index]["prompt"]) for index in prompts]
        for index, found in zip(prompts, answer_prompts(loaded, questions, reader, **options), strict=True):
            results[index] = {"answer": found.text}
    return results


def answer(loaded: LoadedModel, instance: dict[str, Any], reader: ImageReader) -> dict[str, Any]:
    """Answer an instance that has no prompt.

    Raises:
        ValueError: the model lacks the ability, or the image, text, labels or seed is invalid.
    """
    image = reader.read(instance["image"]).pixels if "image" in instance else None
    if "text" in instance:
        return _answer_text(loaded, image, require_text(instance["text"], "text"))
    if image is None:
        raise ValueError("image: missing; send base64 or a data URI")
    if "labels" in instance:
        return _classify(loaded, image, instance["labels"])
    if "reconstruct" in instance:
        return _reconstruct(loaded, image, instance["reconstruct"])
    require_ability(loaded, "embed", "features")
    embed = embedding.embed_images if "embed" in loaded.abilities else masked.image_features
    return {"embedding": embed(loaded, [image])[0].tolist()}


def _check(instances: Any) -> None:
    """Check the keys of all instances and the number of their labels, before any image is decoded."""
    if not isinstance(instances, list) or not instances or not all(isinstance(each, dict) for each in instances):
        raise ValueError('expected {"instances": [{"image": {"b64": …}, "prompt": …}, …]}')
    if len(instances) > MAX_INSTANCES:
        raise ValueError(f"{len(instances)} instances in one request; at most {MAX_INSTANCES} are allowed")
    labels = 0
    for index, instance in enumerate(instances):
        if unknown := sorted(instance.keys() - {"image", *_QUESTIONS}):
            allowed = ", ".join(("image", *_QUESTIONS))
            raise ValueError(f"instance {index}: {unknown[0]!r:.80} is unknown; expected one of {allowed}")
        if len(both := [key for key in _QUESTIONS if key in instance]) > 1:
            raise ValueError(f"instance {index}: has {both[0]} and {both[1]}; send two instances")
        if not isinstance(instance.get("labels", []), list):
            raise ValueError("labels: expected a list of at least two different names")
        labels += len(instance.get("labels", []))
    if labels > MAX_LABELS:
        raise ValueError(f"labels: {labels} in one request; at most {MAX_LABELS} are allowed")


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


def _classify(loaded: LoadedModel, image: Image.Image, labels: list[Any]) -> dict[str, Any]:
    require_ability(loaded, "classify")
    names = [require_text(label, "labels", MAX_LABEL_CHARACTERS) for label in labels]
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError("labels: expected a list of at least two different names")
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
