"""Batches in which some captions are alike, so that telling them apart takes a closer look at the picture.

Source: Yuksekgonul et al. 2022, section 4 (who find alike pictures); Robinson et al. 2021 on hard negatives.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from torch.utils.data import Sampler

GROUP = 8  # captions that are alike; several groups in a batch, so that a batch is not of one kind


class HardBatches(Sampler[int]):
    """An order of the rows for every epoch: a share of each batch is groups of captions that are alike.

    A group is a random caption and those nearest to it by the cosine of their words' TF-IDF that are not in the epoch
    yet; equal captions are no negatives of each other and stay apart. The rest of the batch is random. Every process
    has the same order, of which each takes its part of a batch.

    Args:
        captions: of all rows.
        batch_size: over all processes.
        share: of a batch, above 0 and at most 1.
    """

    def __init__(self, captions: Sequence[str], batch_size: int, share: float, seed: int):
        self.vectors = TfidfVectorizer(token_pattern=r"\S+").fit_transform(captions)
        _, self.same = np.unique(np.array(captions, dtype=object), return_inverse=True)
        self.batch_size, self.share, self.seed, self.epoch = batch_size, share, seed, 0

    def __len__(self) -> int:
        return len(self.same)

    def set_epoch(self, epoch: int) -> None:
        """Another epoch has another order; the trainer says which."""
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
                found = self.alike(order[start], free, min(GROUP, room)) if hard else [int(order[start])]
                free[found] = False
                batch += found
            yield from batch

    def alike(self, row: int, free: np.ndarray, count: int) -> list[int]:
        """`row` and up to `count` − 1 of the `free` rows with the most alike captions, each caption once."""
        cosine = (self.vectors @ self.vectors[row].T).toarray()[:, 0]
        cosine[~free] = 0
        chosen = {self.same[row]: int(row)}
        for near in np.argsort(-cosine, kind="stable"):
            if len(chosen) == count or cosine[near] <= 0:
                break
            chosen.setdefault(self.same[near], int(near))
        return list(chosen.values())
