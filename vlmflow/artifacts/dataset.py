"""The dataset artifact: a folder of parquet shards and a `card.json`.

There are three schemas. Each row contains its images as encoded bytes, so a dataset is a handful of files, and
`datasets.load_dataset(folder)` decodes them.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Image, List, Value

from vlmflow.artifacts.hashing import file_sha256
from vlmflow.artifacts.producer import producer
from vlmflow.errors import DataError

VERSION = 1
Task = Literal["caption", "objects", "vqa", "ground", "ocr", "classify", "statement"]  # of a conversation

IMAGE_MARKER = "<image>"  # the position of an image in the text of a user; nothing else may contain it
PARQUET_END = b"PAR1"  # the last bytes of a parquet file
SHARD_ROWS = 8192
SHARD_BYTES = 2**28  # of images; limits the memory while a shard is filled

_box = {"x0": Value("float32"), "y0": Value("float32"), "x1": Value("float32"), "y1": Value("float32")}

PAIRS = Features(
    {
        "uid": Value("string"),
        "image": Image(decode=False),
        "caption": Value("string"),
        "width": Value("int32"),
        "height": Value("int32"),
        "source": Value("string"),
        "licence": Value("string"),
        "split": Value("string"),  # train or test; assigned once, at ingest
        "label": Value("string"),  # a class name for zero-shot classification, or ""
        "regions": List({"phrase": Value("string"), "category": Value("string"), **_box}),
        "lines": List({"text": Value("string"), **_box}),
    }
)
CONVERSATIONS = Features(
    {
        "uid": Value("string"),
        "pair": Value("string"),  # uid of the source pair
        "images": List(Image(decode=False)),
        "messages": List({"role": Value("string"), "content": Value("string")}),
        "task": Value("string"),  # caption, objects, ground, read or vqa
        "split": Value("string"),
    }
)
PREFERENCES = Features(
    {
        "uid": Value("string"),
        "pair": Value("string"),
        "images": List(Image(decode=False)),
        "prompt": Value("string"),
        "chosen": Value("string"),
        "rejected": Value("string"),
        "source": Value("string"),  # human, rule or model
        "split": Value("string"),
    }
)
SCHEMAS: dict[str, Features] = {"pairs": PAIRS, "conversations": CONVERSATIONS, "preferences": PREFERENCES}


def uid(image: bytes, *texts: str) -> str:
    """Return the 128-bit content hash of an image and its texts; it does not depend on the machine or the row order."""
    digest = hashlib.blake2b(image, digest_size=16)
    for text in texts:
        digest.update(b"\0" + text.encode("utf-8"))
    return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class Card:
    """The metadata of a dataset (`card.json`)."""

    schema: str
    version: int = VERSION
    rows: int
    shards: list[dict[str, Any]]  # name, rows, sha256
    parents: list[str] = field(default_factory=list)  # hashes of the datasets and checkpoints that it was built from
    step: str = ""
    recipe: dict[str, Any] = field(default_factory=dict)
    revision: str = ""  # commit of the repository that versions the data; "" if none does
    producer: dict[str, str] = field(default_factory=dict)  # kfp_run, image and code revision, in a cluster
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def hash(self) -> str:
        """Content hash of the schema and the shards in order; it does not depend on who wrote them or when."""
        content = [self.schema, str(self.version), *(shard["sha256"] for shard in self.shards)]
        return hashlib.sha256("\n".join(content).encode()).hexdigest()

    def save(self, folder: Path) -> None:
        """Write `card.json` into `folder`."""
        text = json.dumps(vars(self), indent=2, ensure_ascii=False) + "\n"
        (folder / "card.json").write_text(text, encoding="utf-8")


class Dataset:
    """An existing dataset artifact; `write` creates one.

    Args:
        path: the artifact's folder.
        schema: the expected schema; None accepts any.

    Raises:
        DataError: the folder, its card or one of its shards is missing, or the schema differs.
    """

    def __init__(self, path: str | Path, schema: str | None = None):
        self.path = Path(path)
        try:
            content = json.loads((self.path / "card.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise DataError(
                f"{path}: not a dataset folder (card.json is missing); create one with `vlmflow step ingest`"
            ) from None
        except json.JSONDecodeError as error:
            raise DataError(f"{path}/card.json: invalid JSON: {error}; create the dataset again") from None
        if content.get("schema") not in SCHEMAS or content.get("version") != VERSION:
            found = f"schema {content.get('schema')!r}, version {content.get('version')!r}"
            raise DataError(f"{path}: unsupported dataset (card.json has {found}); create the dataset again")
        self.card = Card(**content)
        if schema is not None and self.card.schema != schema:
            raise DataError(f"{path}: contains {self.card.schema}, expected {schema}")
        for shard in self.card.shards:
            if not (self.path / shard["name"]).exists():
                raise DataError(f"{path}: shard {shard['name']} is missing; create the dataset again")
            if not _is_whole_parquet(self.path / shard["name"]):
                raise DataError(f"{path}: shard {shard['name']} is cut off; create the dataset again")

    def __len__(self) -> int:
        return self.card.rows

    @cached_property
    def hash(self) -> str:
        """The content hash that identifies the dataset in its lineage."""
        return self.card.hash

    def verify(self) -> None:
        """Raise DataError if the content of a shard does not match the card."""
        for shard in self.card.shards:
            found = file_sha256(self.path / shard["name"])
            if found != shard["sha256"]:
                raise DataError(
                    f"{self.path}/{shard['name']}: its sha256 {found[:12]} is not that of the card, "
                    f"{shard['sha256'][:12]}: the shard was changed; create the dataset again"
                )

    def batches(self, columns: list[str] | None = None, size: int = 1024) -> Iterator[pa.RecordBatch]:
        """Stream the rows in order, `size` at a time, in constant memory."""
        for shard in self.card.shards:
            try:
                with pq.ParquetFile(self.path / shard["name"]) as file:
                    yield from file.iter_batches(batch_size=size, columns=columns)
            except (pa.ArrowInvalid, OSError) as error:
                raise DataError(
                    f"{self.path}: shard {shard['name']} is damaged: {error}; create the dataset again"
                ) from None

    def rows(self, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
        """Stream the rows as dictionaries; an image is `{"bytes": …, "path": …}`."""
        for batch in self.batches(columns):
            yield from batch.to_pylist()

    def rows_at(self, numbers: Iterable[int], columns: list[str] | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield number and row of the rows with these numbers, in ascending order; reads only their row groups."""
        wanted, start = np.unique(np.fromiter(numbers, dtype=np.int64)), 0
        for shard in self.card.shards:
            with pq.ParquetFile(self.path / shard["name"]) as file:
                for group in range(file.num_row_groups):
                    end = start + file.metadata.row_group(group).num_rows
                    inside = wanted[(wanted >= start) & (wanted < end)]
                    if len(inside):
                        table = file.read_row_group(group, columns=columns).take(inside - start)
                        yield from zip(inside.tolist(), table.to_pylist(), strict=True)
                    start = end

    def table(self, columns: list[str] | None = None) -> pa.Table:
        """Load the whole dataset, or some of its columns, into memory."""
        schema = SCHEMAS[self.card.schema].arrow_schema
        if columns is not None:
            schema = pa.schema([schema.field(name) for name in columns])
        return pa.Table.from_batches(self.batches(columns), schema=schema.remove_metadata())


def write(
    path: str | Path,
    schema: str,
    rows: Iterable[dict[str, Any]],
    *,
    step: str = "",
    recipe: dict[str, Any] | None = None,
    parents: list[str] | None = None,
    notes: dict[str, Any] | None = None,
    revision: str = "",
) -> Dataset:
    """Write `rows` as a dataset artifact: shards first, the card last, so that an incomplete dataset has no card.

    Args:
        path: a folder; created if it does not exist.
        schema: `pairs`, `conversations` or `preferences`.
        rows: mappings with the schema's columns; an image is encoded bytes or `{"bytes": …, "path": …}`.
        step, recipe: the step that writes it, and its recipe section, for the card.
        parents: hashes of the datasets and checkpoints that it was built from.
        notes: further entries of the card, such as counts or a mapping of columns.
        revision: commit of the source data, from the parents' cards.

    Raises:
        DataError: a row does not fit the schema.
    """
    folder, arrow = Path(path), SCHEMAS[schema].arrow_schema
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[dict[str, Any]] = []
    pending: list[dict[str, Any]] = []

    def flush() -> None:
        name = f"data-{len(shards):05d}.parquet"
        try:
            table = pa.Table.from_pylist(pending, schema=arrow)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise DataError(f"{folder}: a row does not fit the schema {schema}: {error}") from None
        pq.write_table(table, folder / name, row_group_size=1024, compression="zstd")
        digest = file_sha256(folder / name)
        shards.append({"name": name, "rows": len(pending), "sha256": digest})
        pending.clear()

    size = 0
    for row in rows:
        pending.append(_with_bytes(row))
        size += _image_bytes(pending[-1])
        if len(pending) == SHARD_ROWS or size > SHARD_BYTES:
            flush()
            size = 0
    if pending or not shards:
        flush()
    card = Card(
        schema=schema,
        rows=sum(shard["rows"] for shard in shards),
        shards=shards,
        parents=parents or [],
        step=step,
        recipe=recipe or {},
        revision=revision,
        producer=producer(),
        notes=notes or {},
    )
    card.save(folder)
    return Dataset(folder)


def _is_whole_parquet(file: Path) -> bool:
    with file.open("rb") as handle:
        size = handle.seek(0, 2)
        handle.seek(max(0, size - len(PARQUET_END)))
        return handle.read() == PARQUET_END


def _with_bytes(row: dict[str, Any]) -> dict[str, Any]:
    def wrap(image: Any) -> Any:
        return {"bytes": image, "path": None} if isinstance(image, bytes) else image

    if "image" in row:
        return {**row, "image": wrap(row["image"])}
    return {**row, "images": [wrap(image) for image in row["images"]]}


def _image_bytes(row: dict[str, Any]) -> int:
    images = [row["image"]] if "image" in row else row["images"]
    return sum(len(image["bytes"] or b"") for image in images if image)
