"""Chat about images: prompts, generated answers, and the likelihood of given answers."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from vlmflow.inference.inputs import batches, to_pil, whole_image
from vlmflow.inference.loading import LoadedModel


def chat_prompt(processor: Any, prompt: str, images: int = 1) -> str:
    """The chat template for one question about `images` images, up to the start of the answer."""
    content = [{"type": "image"} for _ in range(images)] + [{"type": "text", "text": prompt}]
    messages = [{"role": "user", "content": content}]
    return processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)


@torch.inference_mode()
def chat(
    loaded: LoadedModel,
    images: Sequence[Image.Image | np.ndarray],
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 48,
    batch_size: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[str]:
    """Answer prompt i about image i: greedily, or by sampling with `seed` if the temperature is above 0."""
    processor, answers = loaded.processor, []
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
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
            eos_token_id=processor.tokenizer.eos_token_id,
            **sampling,
        )
        answers += _decode_answers(processor.tokenizer, out[:, batch["input_ids"].shape[1] :])
    by_index = dict(zip(order, answers, strict=True))
    return [by_index[i] for i in range(len(prompts))]


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


def _decode_answers(tokenizer: Any, ids: torch.Tensor) -> list[str]:
    """Decode answers up to their end token, with location tokens (`<loc…>`) and without padding."""
    texts = []
    for row in ids.tolist():
        if tokenizer.eos_token_id in row:
            row = row[: row.index(tokenizer.eos_token_id)]
        row = [token for token in row if token != tokenizer.pad_token_id]
        texts.append(tokenizer.decode(row, skip_special_tokens=False).strip())
    return texts
