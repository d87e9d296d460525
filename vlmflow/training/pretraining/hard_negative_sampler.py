"""A sampler that puts similar captions into one batch, as hard negatives of each other.

Source: Yuksekgonul et al. 2022, section 4 (with similar images); Robinson et al. 2021 on hard negatives.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from torch.utils.data import Sampler

GROUP = 8  # similar captions in a group; a batch has several groups, so that it is not all of one kind


class HardNegativeSampler(Sampler[int]):
    """An order of the rows for every epoch, in which a share of each batch is groups of similar captions.

    A group is a random caption and those nearest to it, by the cosine of TF-IDF vectors, that the epoch has not used
    yet. Equal captions are not negatives of each other and never share a group. The rest of the batch is random. Every
    process has the same order and takes its part of each batch.

    Args:
        captions: the captions of all rows.
        batch_size: rows in a batch, over all processes.
        share: fraction of a batch in groups, above 0 and at most 1.
    """

    def __init__(self, captions: Sequence[str], batch_size: int, share: float, seed: int):
        self.vectors = TfidfVectorizer(token_pattern=r"\S+").fit_transform(captions)
        _, self.caption_ids = np.unique(np.array(captions, dtype=object), return_inverse=True)
        self.batch_size, self.share, self.seed, self.epoch = batch_size, share, seed, 0

    def __len__(self) -> int:
        return len(self.caption_ids)

    def set_epoch(self, epoch: int) -> None:
        """Select the order of `epoch`; the trainer calls it."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng((self.seed, self.epoch))
        order, free = generator.permutation(len(self)), np.ones(len(self), dtype=bool)
        start = 0
        while start < len(order):
            batch: list[int] = []
            while len(batch) < self.batch_size:
                while start < len(order) and not free[order[start]]:
                    start += 1
                if start == len(order):
                    break
                room = self.batch_size - len(batch)
                hard = len(batch) < round(self.share * self.batch_size)
                group = self.nearest_captions(order[start], free, min(GROUP, room)) if hard else [int(order[start])]
                free[group] = False
                batch += group
            yield from batch

    def nearest_captions(self, row: int, free: np.ndarray, count: int) -> list[int]:
        """`row` and up to `count` − 1 of the `free` rows with the most similar captions, each caption once."""
        cosine = (self.vectors @ self.vectors[row].T).toarray()[:, 0]
        cosine[~free] = 0
        chosen = {self.caption_ids[row]: int(row)}
        for near in np.argsort(-cosine, kind="stable"):
            if len(chosen) == count or cosine[near] <= 0:
                break
            chosen.setdefault(self.caption_ids[near], int(near))
        return list(chosen.values())
