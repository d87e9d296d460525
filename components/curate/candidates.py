"""The rows of a dataset with the state of their curation, for the rules that follow feature extraction."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from components.curate.features import PairFeatures
from vlmflow.artifacts.dataset import Dataset
from vlmflow.artifacts.ledger import Ledger


@dataclass(frozen=True)
class Candidates:
    """The rows of a dataset, their features and verdicts so far, and the rewritten captions."""

    pairs: Dataset
    features: PairFeatures
    ledger: Ledger
    captions: dict[int, str]  # rewritten captions by row; "" is a cleared caption

    @property
    def eligible(self) -> np.ndarray:
        """(N,) bool: rows of the training split that are still kept and have a caption."""
        cleared = np.zeros(len(self.ledger), dtype=bool)
        cleared[[row for row, text in self.captions.items() if not text]] = True
        return self.ledger.kept & ~self.features.is_test & ~cleared

    def rows(self, selected: np.ndarray, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
        """Yield the rows at `selected`, (N,) bool, in order, with their rewritten captions."""
        for number, row in enumerate(self.pairs.rows(columns)):
            if selected[number]:
                yield {**row, "caption": self.captions.get(number, row["caption"])} if "caption" in row else row
