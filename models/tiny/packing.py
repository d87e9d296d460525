"""Training batches in which all turns about an image share one copy of its tokens."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class PackedCollator:
    """Pack rows of one image and k independent turns into one sequence each (see `TinyModel`).

    A row is `{"pixels": (3, H, W) uint8, "turns": [(question ids, answer ids)]}`. The ids of a question end with
    `<assistant>`, those of an answer with `<eos>`; only answers are scored.
    """

    image_token_id: int
    image_tokens: int
    pad_token_id: int

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return input_ids, labels and segment_ids, (N, L) each, and pixel_values, (N, 3, H, W) uint8."""
        length = self.image_tokens + max(sum(len(q) + len(a) for q, a in row["turns"]) for row in rows)
        ids = np.full((len(rows), length), self.pad_token_id, np.int64)
        labels = np.full((len(rows), length), -100, np.int64)
        segments = np.full((len(rows), length), -1, np.int64)
        ids[:, : self.image_tokens], segments[:, : self.image_tokens] = self.image_token_id, 0
        for i, row in enumerate(rows):
            start = self.image_tokens
            for turn, (question, answer) in enumerate(row["turns"], start=1):
                end = start + len(question) + len(answer)
                ids[i, start:end] = [*question, *answer]
                labels[i, start + len(question) : end] = answer
                segments[i, start:end] = turn
                start = end
        return {
            "input_ids": torch.from_numpy(ids),
            "labels": torch.from_numpy(labels),
            "segment_ids": torch.from_numpy(segments),
            "pixel_values": torch.from_numpy(np.stack([row["pixels"] for row in rows])),
        }
