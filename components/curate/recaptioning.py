"""Recaptioning: a captioner proposes captions, and the image-text score decides between them and the web captions."""

from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from components.curate import caption_rules, text_masking
from components.curate.candidates import Candidates
from components.curate.config import CurateConfig
from components.curate.encoder import Encoder

if TYPE_CHECKING:
    from vlmflow.inference.loading import LoadedModel


def recaption(
    candidates: Candidates, selected: np.ndarray, encoder: Encoder, captioner: str, config: CurateConfig
) -> int:
    """Propose a caption for every row at `selected`, (N,) bool, and keep it if it has the better score.

    Proposals that fail the caption rules are rejected. The ledger records both captions.

    Returns:
        the number of proposed captions that are kept.

    Source: Li et al. 2022, "BLIP", section 3.3 (CapFilt), with a comparison of scores instead of its classifier.
    """
    from vlmflow.inference.loading import load

    model, replaced = load(captioner), 0
    rows = zip(np.flatnonzero(selected).tolist(), candidates.rows(selected, ["image", "caption", "lines"]), strict=True)
    while batch := list(islice(rows, encoder.batch_size)):
        replaced += _recaption_batch(candidates, batch, model, encoder, config)
    return replaced


def _recaption_batch(
    candidates: Candidates,
    batch: list[tuple[int, dict[str, Any]]],
    model: "LoadedModel",
    encoder: Encoder,
    config: CurateConfig,
) -> int:
    from vlmflow.images.decoding import decode
    from vlmflow.inference.generation import chat
    from vlmflow.inference.prompts import DESCRIBE_IMAGE

    ledger, replaced = candidates.ledger, 0
    proposed = chat(model, [decode(row["image"]["bytes"]) for _, row in batch], [DESCRIBE_IMAGE] * len(batch))
    images = (
        text_masking.mask_lines(row["image"]["bytes"], row["lines"] if encoder.mask_text else None) for _, row in batch
    )
    scores = encoder.cosine_similarities(zip(images, proposed, strict=True)).tolist()
    for (number, row), caption, score in zip(batch, proposed, scores, strict=True):
        ledger.web_captions[number], ledger.proposed_captions[number] = row["caption"], (caption, score)
        if score > ledger.score[number] and not caption_rules.check_caption(caption, config).finding:
            candidates.captions[number], ledger.score[number] = caption, score
            ledger.add_note([number], ["caption replaced by the captioner's"])
            replaced += 1
    return replaced
