"""What ingest could not use, each with its reason: `quarantine.jsonl` beside the shards."""

import json
from collections import Counter
from pathlib import Path
from typing import Self

from vlmflow.errors import RecordError

FILE_NAME = "quarantine.jsonl"


class Quarantine:
    """Writes an entry for everything that is left out, and counts by kind.

    An entry names its `place` in the index, the `image` as the index gives it, `what` was left out (a row
    of the index, a region or a line), the `reason`, and, where the row itself was kept, its `uids` (one
    for each caption).
    """

    def __init__(self, folder: Path):
        self.path = folder / FILE_NAME
        self.counts: dict[str, Counter[str]] = {"rows": Counter(), "regions": Counter(), "lines": Counter()}
        self.first = ""

    def __enter__(self) -> Self:
        self._file = self.path.open("w", encoding="utf-8")
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def add(self, what: str, place: str, image: str, reason: RecordError, uids: list[str] | None = None) -> None:
        """Record that `what` (rows, regions or lines) lost one entry."""
        self.counts[what][reason.kind] += 1
        self.first = self.first or f"{place}: {reason}"
        entry = {"what": what.removesuffix("s"), "place": place, "image": image, "reason": str(reason)}
        self._file.write(
            json.dumps(entry | {"uids": uids or []}) + "\n"
        )  # ASCII, so that no text of the index can fail to be written
