"""Chat about images: prompts, generated answers, and the likelihood of given answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from vlmflow.inference.inputs import batches, to_pil, whole_image
from vlmflow.inference.loading import LoadedModel

MIN_TEMPERATURE = 0.01  # below it, sampling is greedy in effect, and dividing the logits by it overflows


def chat_prompt(processor: Any, prompt: str, images: int = 1) -> str:
    """The chat template for one question about `images` images, up to the start of the answer."""
    content = [{"type": "image"} for _ in range(images)] + [{"type": "text", "text": prompt}]
    messages = [{"role": "user", "content": content}]
    return processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)


@dataclass(frozen=True)
class Answer:
    """A generated answer."""

    text: str
    prompt_tokens: int  # of the image and the text
    completion_tokens: int  # with the end token
    finished: bool  # ended with an end token, not at max_new_tokens


def chat(
    loaded: LoadedModel,
    images: Sequence[Image.Image | np.ndarray],
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 48,
    batch_size: int = 64,
    temperature: float = 0.0,
    seed: int | None = 0,
) -> list[str]:
    """Answer prompt i about image i: the texts of `generate`."""
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "batch_size": batch_size}
    answers = generate(loaded, images, prompts, **options, temperature=temperature, seed=seed)
    return [answer.text for answer in answers]


@torch.inference_mode()
def generate(
    loaded: LoadedModel,
    images: Sequence[Image.Image | np.ndarray],
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    batch_size: int = 64,
    temperature: float = 0.0,
    seed: int | None = None,
) -> list[Answer]:
    """Answer prompt i about image i: greedily, or by sampling if the temperature is at least `MIN_TEMPERATURE`.

    Args:
        seed: of the samples; None draws a new one.
    """
    processor, answers, ends = loaded.processor, [], end_tokens(loaded)
    sampled = temperature >= MIN_TEMPERATURE
    sampling = {"do_sample": True, "temperature": temperature} if sampled else {"do_sample": False}
    if seed is None:
        torch.seed()
    else:
        torch.manual_seed(seed)
    # Batches of prompts of similar length need little padding; the answers are put back into the given order.
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for part in batches(order, batch_size):
        batch = processor(
            images=[[whole_image(loaded.image_processor, to_pil(images[i]))] for i in part],
            text=[chat_prompt(processor, prompts[i]) for i in part],
            padding=True,
            padding_side="left",
            return_tensors="pt",
        ).to(loaded.model.device)
        out = loaded.model.generate(
            **batch,
            max_new_tokens=max_new_tokens,
            pad_token_id=processor.tokenizer.pad_token_id,
            eos_token_id=ends,
            **sampling,
        )
        lengths = batch["attention_mask"].sum(1).tolist()
        rows = out[:, batch["input_ids"].shape[1] :].tolist()
        answers += [_answer(processor.tokenizer, row, ends, length) for row, length in zip(rows, lengths, strict=True)]
    by_index = dict(zip(order, answers, strict=True))
    return [by_index[i] for i in range(len(prompts))]


def end_tokens(loaded: LoadedModel) -> list[int]:
    """Ids of the tokens that end an answer: those of the model's generation config, and the tokenizer's own."""
    own = loaded.model.generation_config.eos_token_id
    ids = own if isinstance(own, list) else [own]
    return [token for token in dict.fromkeys([*ids, loaded.processor.tokenizer.eos_token_id]) if token is not None]


@torch.inference_mode()
def score(
    loaded: LoadedModel,
    images: Sequence[Image.Image | np.ndarray],
    prompts: Sequence[str],
    answers: Sequence[str],
    batch_size: int = 128,
) -> np.ndarray:
    """Log-likelihood (N,) of each answer, summed over its tokens and the end token."""
    processor, tokenizer, log_likelihoods = loaded.processor, loaded.processor.tokenizer, []
    for part in batches(range(len(prompts)), batch_size):
        prefixes = [chat_prompt(processor, prompts[i]) for i in part]
        texts = [prefix + answers[i] + tokenizer.eos_token for prefix, i in zip(prefixes, part, strict=True)]
        batch = processor(
            images=[[whole_image(loaded.image_processor, to_pil(images[i]))] for i in part],
            text=texts,
            padding=True,
            padding_side="right",
            return_tensors="pt",
        ).to(loaded.model.device)
        lengths = [
            len(tokenizer(answers[i] + tokenizer.eos_token, add_special_tokens=False)["input_ids"]) for i in part
        ]
        logits = loaded.model(**batch).logits[:, :-1].float().log_softmax(-1)
        ids, mask = batch["input_ids"][:, 1:], batch["attention_mask"]
        token_scores = logits.gather(-1, ids[..., None])[..., 0]
        position = torch.arange(ids.shape[1], device=ids.device)[None]
        ends = mask.sum(1)[:, None] - 1
        length = torch.tensor(lengths, device=ids.device)[:, None]
        log_likelihoods.append((token_scores * ((position >= ends - length) & (position < ends))).sum(1).cpu().numpy())
    return np.concatenate(log_likelihoods)


def _answer(tokenizer: Any, row: list[int], ends: list[int], prompt_tokens: int) -> Answer:
    """Decode an answer up to its end token, with location tokens (`<loc…>`) and without padding."""
    end = next((place for place, token in enumerate(row) if token in ends), None)
    ids = [token for token in row[:end] if token != tokenizer.pad_token_id]
    text = tokenizer.decode(ids, skip_special_tokens=False).strip()
    return Answer(text, prompt_tokens, len(row) if end is None else end + 1, end is not None)
