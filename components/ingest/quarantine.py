"""The quarantine: `quarantine.jsonl` beside the shards lists everything that ingest skipped, with the reason."""

import json
from collections import Counter
from pathlib import Path
from typing import Self

from vlmflow.errors import RecordError

FILE_NAME = "quarantine.jsonl"


class Quarantine:
    """Write an entry for each skipped row, region or line, and count them by kind of error.

    Keys of an entry: `what` was skipped (`row`, `region` or `line`), its `place` in the index, the `image` as the
    index gives it, the `reason`, and the `uids` of the pairs of its row, one per caption; empty for a skipped row.
    """

    def __init__(self, folder: Path):
        self.path = folder / FILE_NAME
        self.counts: dict[str, Counter[str]] = {"rows": Counter(), "regions": Counter(), "lines": Counter()}
        self.examples: dict[tuple[str, str], str] = {}  # the first entry by what was skipped and kind of error

    def __enter__(self) -> Self:
        self._file = self.path.open("w", encoding="utf-8")
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def describe(self) -> str:
        """Return the counts by kind of error, each with its first entry; "" if nothing was skipped."""
        return ", ".join(
            f"{count} {what if count > 1 else what.removesuffix('s')} {kind!r} (first {self.examples[what, kind]})"
            for what, kinds in self.counts.items()
            for kind, count in kinds.most_common()
        )

    def add(self, what: str, location: str, image: str, reason: RecordError, uids: list[str] | None = None) -> None:
        """Add an entry; `what` is rows, regions or lines."""
        self.counts[what][reason.kind] += 1
        self.examples.setdefault((what, reason.kind), f"{location}: {reason.detail}" if reason.detail else location)
        entry = {"what": what.removesuffix("s"), "place": location, "image": image, "reason": str(reason)}
        # json.dumps escapes to ASCII, so that any text of the index can be written, even invalid Unicode.
        self._file.write(json.dumps(entry | {"uids": uids or []}) + "\n")
