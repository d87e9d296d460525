"""The rows that may still be kept, as the rules after measurement see them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from components.curate.features import Measured
from vlmflow.artifacts.dataset import Dataset
from vlmflow.artifacts.ledger import Ledger


@dataclass(frozen=True)
class Candidates:
    """The rows of a dataset with their verdicts so far, and the captions that are not kept as they came."""

    pairs: Dataset
    measured: Measured
    ledger: Ledger
    captions: dict[int, str]  # by row

    @property
    def wanted(self) -> np.ndarray:
        """(N,) bool: kept so far, of the training split, with a caption."""
        bare = np.zeros(len(self.ledger), dtype=bool)
        bare[[row for row, text in self.captions.items() if not text]] = True
        return self.ledger.kept & ~self.measured.test & ~bare

    def rows(self, wanted: np.ndarray, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
        """The rows of which `wanted`, (N,) bool, says so, in order, with the captions that they would keep."""
        for number, row in enumerate(self.pairs.rows(columns)):
            if wanted[number]:
                yield {**row, "caption": self.captions.get(number, row["caption"])} if "caption" in row else row
