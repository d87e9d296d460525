"""Bootstrapped captions: a captioner proposes, the score decides."""

from typing import Any

import numpy as np

from components.curate import caption_rules, text_masking
from components.curate.candidates import Candidates
from components.curate.config import CurateConfig
from components.curate.encoder import Encoder


def propose(candidates: Candidates, wanted: np.ndarray, encoder: Encoder, captioner: str, section: CurateConfig) -> int:
    """A captioner proposes for every wanted pair; the one with the better score is kept, both stay on record.

    A proposal that the rules of text would drop is none.

    Returns:
        how many of its captions are kept.

    Source: Li et al. 2022, "BLIP", section 3.3 (CapFilt), with a comparison of scores for its classifier.
    """
    from vlmflow.images.decoding import decode
    from vlmflow.inference.loading import chat, load
    from vlmflow.inference.prompts import DESCRIBE_IMAGE

    ledger, speaker, taken = candidates.ledger, load(captioner), 0
    numbers, rows = np.flatnonzero(wanted), list[dict[str, Any]]()
    size = encoder.batch_size

    def settle(batch: list[dict[str, Any]], places: np.ndarray) -> int:
        said = chat(speaker, [decode(row["image"]["bytes"]) for row in batch], [DESCRIBE_IMAGE] * len(batch))
        images = (
            text_masking.mask(row["image"]["bytes"], row["lines"] if encoder.mask_text else None) for row in batch
        )
        scores = encoder.cosines(zip(images, said, strict=True)).tolist()
        better = 0
        for place, row, text, value in zip(places.tolist(), batch, said, scores, strict=True):
            ledger.web[place], ledger.proposed[place] = row["caption"], (text, value)
            if value > ledger.score[place] and not caption_rules.judge(text, section).finding:
                candidates.captions[place], ledger.score[place] = text, value
                ledger.note([place], ["the captioner's caption is kept"])
                better += 1
        return better

    done = 0
    for row in candidates.rows(wanted, ["image", "caption", "lines"]):
        rows.append(row)
        if len(rows) == size or done + len(rows) == len(numbers):
            taken += settle(rows, numbers[done : done + len(rows)])
            done, rows = done + len(rows), []
    return taken
