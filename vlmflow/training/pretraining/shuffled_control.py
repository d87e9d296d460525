"""The control of a pretraining run: the same data, shuffled so that there is no relation to learn."""

from typing import Any

import numpy as np


def shuffle_pairs(rows: list[dict[str, Any]], patch: int, seed: int) -> list[dict[str, Any]]:
    """Break the relation that a family learns from, and keep everything else.

    Pairs are matched with a random caption. Without images, words are shuffled across all captions; without captions,
    patches are shuffled across all images, each kept at its position. So every word and patch is as frequent as before.

    Args:
        rows: `pixels` (3, H, W) uint8, `caption`, or both.
        patch: side of a patch in pixels; used for images without captions.
    """
    generator = np.random.default_rng(seed)
    paired, has_images = all({"pixels", "caption"} <= row.keys() for row in rows), "pixels" in rows[0]
    if paired:
        order = generator.permutation(len(rows))
        return [{**row, "caption": rows[j]["caption"]} for row, j in zip(rows, order, strict=True)]
    if not has_images:
        words = np.array([word for row in rows for word in row["caption"].split()])
        lengths = [len(row["caption"].split()) for row in rows]
        shuffled = np.split(generator.permutation(words), np.cumsum(lengths)[:-1])
        return [{"caption": " ".join(part)} for part in shuffled]
    images = np.stack([row["pixels"] for row in rows])
    for top in range(0, images.shape[2], patch):
        for left in range(0, images.shape[3], patch):
            window = np.s_[:, :, top : top + patch, left : left + patch]
            images[window] = images[window][generator.permutation(len(rows))]
    return [{"pixels": pixels} for pixels in images]
