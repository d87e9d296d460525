"""A checkpoint at work: embed, classify, answer and score, for evaluation and serving alike."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

import models.tiny  # noqa: F401  registers the family with the Auto classes
from models.zoo import EMBEDS, SPEAKS, ZOO
from vlmflow.artifacts.checkpoint import Checkpoint
from vlmflow.errors import ModelError
from vlmflow.images.preprocessing import pixels

T = TypeVar("T")
PROMPTS = ("a {}", "there is a {}", "a photo with a {}")  # of a zero-shot class


@dataclass(frozen=True)
class Loaded:
    """A model ready to run, its processor, its card and what it can do."""

    model: Any
    processor: Any
    card: dict[str, Any]
    abilities: frozenset[str]

    @property
    def image_processor(self) -> Any:
        """What prepares pictures, or None for a model of texts alone."""
        return image_processor(self.processor)

    @property
    def tokenizer(self) -> Any:
        """What prepares texts, or None for a model of pictures alone."""
        return tokenizer(self.processor)

    @property
    def box_convention(self) -> str:
        """How the model says a place: its processor's declaration, or plain pixels."""
        return getattr(self.processor, "box_convention", "pixels")


def load(path: str | Path) -> Loaded:
    """Load a model folder for inference on the device at hand.

    Raises:
        ModelError: no model there, or one that transformers cannot load.
    """
    checkpoint = Checkpoint(path)
    family = ZOO.get(checkpoint.card.get("family", ""))
    try:
        if family:
            auto, abilities = family.cls, family.abilities
        else:
            names = AutoConfig.from_pretrained(path).architectures or []
            speaks = any("Generation" in name for name in names)
            auto, abilities = (AutoModelForImageTextToText, SPEAKS) if speaks else (AutoModel, EMBEDS)
        model: Any = auto.from_pretrained(path)
        processor = AutoProcessor.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{path}: cannot be loaded: {' '.join(str(error).split())}") from error
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Loaded(model.eval().to(device), processor, checkpoint.card, abilities)


def image_processor(processor: Any) -> Any:
    """The part of `processor` that prepares pictures; it may be nothing else, or have none."""
    found = getattr(processor, "image_processor", None)
    return processor if found is None and hasattr(processor, "image_mean") else found


def tokenizer(processor: Any) -> Any:
    """The part of `processor` that prepares texts; it may be nothing else, or have none."""
    found = getattr(processor, "tokenizer", None)
    return processor if found is None and hasattr(processor, "convert_tokens_to_ids") else found


@torch.inference_mode()
def embed_images(loaded: Loaded, images: Sequence[Image.Image | np.ndarray], batch_size: int = 128) -> np.ndarray:
    """Unit vectors (N, D) of pictures (PIL, or (H, W, 3) uint8 arrays)."""
    rows = []
    for part in _parts(images, batch_size):
        batch = pixels(loaded.image_processor, [_picture(p) for p in part])
        features = _features(loaded.model.get_image_features(pixel_values=batch.to(loaded.model.device)))
        rows.append(F.normalize(features, dim=-1).float().cpu().numpy())
    return np.concatenate(rows)


@torch.inference_mode()
def embed_texts(loaded: Loaded, texts: Sequence[str], batch_size: int = 256) -> np.ndarray:
    """Unit vectors (N, D) of captions."""
    rows = []
    for part in _parts(texts, batch_size):
        batch = tokenize_captions(loaded.tokenizer, loaded.model.config, list(part))
        features = _features(loaded.model.get_text_features(**batch.to(loaded.model.device)))
        rows.append(F.normalize(features, dim=-1).float().cpu().numpy())
    return np.concatenate(rows)


@torch.inference_mode()
def similarity(loaded: Loaded, images: Sequence[Image.Image | np.ndarray], texts: Sequence[str]) -> np.ndarray:
    """How well each picture goes with each text, (N, M): cosines, or what the model itself says of every pair."""
    if "embed" in loaded.abilities:
        return embed_images(loaded, images) @ embed_texts(loaded, texts).T
    words = tokenize_captions(loaded.tokenizer, loaded.model.config, list(texts)).to(loaded.model.device)
    rows = []
    for part in _parts(images, 32):
        batch = pixels(loaded.image_processor, [_picture(p) for p in part]).to(loaded.model.device)
        rows.append(loaded.model.similarity(pixel_values=batch, **words).float().cpu().numpy())
    return np.concatenate(rows)


def tokenize_captions(tokenizer: Any, config: Any, texts: Sequence[str] | list[list[str]]) -> Any:
    """Captions to a batch, cut to the text tower's length; SigLIP wants every caption padded to it.

    Args:
        texts: as they are, or each as a list of its words, so that the batch knows which token is of which word.
    """
    text_config = config.get_text_config()
    limit = min(64, text_config.max_position_embeddings)
    padding = "max_length" if config.model_type == "siglip" else True
    batch = tokenizer(
        texts,
        padding=padding,
        truncation=True,
        max_length=limit,
        padding_side="right",
        is_split_into_words=bool(texts) and not isinstance(texts[0], str),
        return_token_type_ids=False,
        return_tensors="pt",
    )
    if config.model_type == "siglip":
        batch.pop("attention_mask")
    return batch


def classify(loaded: Loaded, images: Sequence[Image.Image | np.ndarray], labels: Sequence[str]) -> np.ndarray:
    """Probabilities (N, C) of zero-shot classes, each class the mean over a few prompts.

    Source: Radford et al. 2021, section 3.1.4 (prompt ensembling in embedding space).
    """
    if "embed" in loaded.abilities:
        logits = 100 * embed_images(loaded, images) @ class_vectors(loaded, labels).T
    else:
        texts = [prompt.format(label) for label in labels for prompt in PROMPTS]
        logits = similarity(loaded, images, texts).reshape(len(images), len(labels), -1).mean(2)
    exponent = np.exp(logits - logits.max(1, keepdims=True))
    return exponent / exponent.sum(1, keepdims=True)


def class_vectors(loaded: Loaded, labels: Sequence[str]) -> np.ndarray:
    """Unit vectors (C, D) of zero-shot classes, each the mean over a few prompts."""
    texts = [prompt.format(label) for label in labels for prompt in PROMPTS]
    classes = embed_texts(loaded, texts).reshape(len(labels), len(PROMPTS), -1).mean(1)
    return classes / np.linalg.norm(classes, axis=1, keepdims=True)


def chat_prompt(processor: Any, prompt: str, pictures: int = 1) -> str:
    """The chat template's text for one question about `pictures` pictures, up to where the answer starts."""
    content = [{"type": "image"} for _ in range(pictures)] + [{"type": "text", "text": prompt}]
    messages = [{"role": "user", "content": content}]
    return processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)


@torch.inference_mode()
def chat(
    loaded: Loaded,
    images: Sequence[Image.Image | np.ndarray],
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 48,
    batch_size: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[str]:
    """Answer each prompt about its picture; greedy, or sampled at a temperature above 0 from `seed`."""
    processor, answers = loaded.processor, []
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    torch.manual_seed(seed)
    # Pad little: prompts of one length go together, and the answers go back to their places.
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for part in _parts(order, batch_size):
        batch = processor(
            images=[[_picture(images[i])] for i in part],
            text=[chat_prompt(processor, prompts[i]) for i in part],
            padding=True,
            padding_side="left",
            return_tensors="pt",
        ).to(loaded.model.device)
        out = loaded.model.generate(
            **batch,
            max_new_tokens=max_new_tokens,
            pad_token_id=processor.tokenizer.pad_token_id,
            eos_token_id=processor.tokenizer.eos_token_id,
            **sampling,
        )
        answers += _words(processor.tokenizer, out[:, batch["input_ids"].shape[1] :])
    by_place = dict(zip(order, answers, strict=True))
    return [by_place[i] for i in range(len(prompts))]


@torch.inference_mode()
def score(
    loaded: Loaded,
    images: Sequence[Image.Image | np.ndarray],
    prompts: Sequence[str],
    answers: Sequence[str],
    batch_size: int = 128,
) -> np.ndarray:
    """Log-likelihood (N,) of each answer with its end token, summed over its tokens."""
    processor, tokenizer, totals = loaded.processor, loaded.processor.tokenizer, []
    for part in _parts(range(len(prompts)), batch_size):
        heads = [chat_prompt(processor, prompts[i]) for i in part]
        texts = [head + answers[i] + tokenizer.eos_token for head, i in zip(heads, part, strict=True)]
        batch = processor(
            images=[[_picture(images[i])] for i in part],
            text=texts,
            padding=True,
            padding_side="right",
            return_tensors="pt",
        ).to(loaded.model.device)
        tails = [len(tokenizer(answers[i] + tokenizer.eos_token, add_special_tokens=False)["input_ids"]) for i in part]
        logits = loaded.model(**batch).logits[:, :-1].float().log_softmax(-1)
        ids, mask = batch["input_ids"][:, 1:], batch["attention_mask"]
        each = logits.gather(-1, ids[..., None])[..., 0]
        place = torch.arange(ids.shape[1], device=ids.device)[None]
        ends = mask.sum(1)[:, None] - 1
        tail = torch.tensor(tails, device=ids.device)[:, None]
        totals.append((each * ((place >= ends - tail) & (place < ends))).sum(1).cpu().numpy())
    return np.concatenate(totals)


def _words(tokenizer: Any, ids: torch.Tensor) -> list[str]:
    """Decode answers up to their end token; places (`<loc…>`) are part of an answer, padding is not."""
    texts = []
    for row in ids.tolist():
        if tokenizer.eos_token_id in row:
            row = row[: row.index(tokenizer.eos_token_id)]
        row = [token for token in row if token != tokenizer.pad_token_id]
        texts.append(tokenizer.decode(row, skip_special_tokens=False).strip())
    return texts


def _features(output: Any) -> torch.Tensor:
    return output if isinstance(output, torch.Tensor) else output.pooler_output


def _picture(image: Image.Image | np.ndarray) -> Image.Image:
    return Image.fromarray(image) if isinstance(image, np.ndarray) else image


def _parts(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
