"""The control of a pretraining run: the same data, but what belongs together is dealt at random."""

from typing import Any

import numpy as np


def deal(rows: list[dict[str, Any]], patch: int, seed: int) -> list[dict[str, Any]]:
    """Break what a family learns from, and keep everything else.

    Pairs get another picture's caption. Captions alone get words from all captions, and pictures alone get patches
    from all pictures, each at the place where it was, so that every single part is as frequent as before.

    Args:
        rows: `pixels` (3, H, W) uint8, `caption`, or both.
        patch: side of a patch in pixels, for pictures alone.
    """
    generator = np.random.default_rng(seed)
    paired, pictures = all({"pixels", "caption"} <= row.keys() for row in rows), "pixels" in rows[0]
    if paired:
        order = generator.permutation(len(rows))
        return [{**row, "caption": rows[j]["caption"]} for row, j in zip(rows, order, strict=True)]
    if not pictures:
        words = np.array([word for row in rows for word in row["caption"].split()])
        lengths = [len(row["caption"].split()) for row in rows]
        dealt = np.split(generator.permutation(words), np.cumsum(lengths)[:-1])
        return [{"caption": " ".join(part)} for part in dealt]
    whole = np.stack([row["pixels"] for row in rows])
    for top in range(0, whole.shape[2], patch):
        for left in range(0, whole.shape[3], patch):
            where = np.s_[:, :, top : top + patch, left : left + patch]
            whole[where] = whole[where][generator.permutation(len(rows))]
    return [{"pixels": pixels} for pixels in whole]
