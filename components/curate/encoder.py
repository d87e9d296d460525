"""The dual encoder at work, shard by shard: scores of pairs, and where pictures are."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from components.curate import text_masking
from components.curate.cache import Cache
from components.curate.engine import Engine, Task, parts
from vlmflow.artifacts.dataset import Dataset
from vlmflow.errors import ModelError
from vlmflow.runtime.code_hash import code_hash
from vlmflow.runtime.step_cache import key

if TYPE_CHECKING:
    from vlmflow.inference.loading import Loaded

PICTURES, TEXTS = 32, 64  # in a batch on a CPU, where larger ones do not stay in its caches


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """A dual encoder and how it is asked.

    What it says of a picture or a caption depends on that and the encoder alone, to the last bit: every batch
    has the same shape, filled up where pictures run out, and captions of one length go together.

    Args:
        model: its folder. hash: of the checkpoint, so that no other's scores are taken for its own.
        batch_size: pictures in memory at a time.
        mask_text: paint over the known lines of text before a pair is scored.
        cache: a folder that keeps what encoders said; None keeps nothing.
    """

    model: str
    hash: str
    batch_size: int = 256
    mask_text: bool = False
    cache: str | None = None

    @cached_property
    def loaded(self) -> "Loaded":
        """The model, loaded when it is first asked, by each worker.

        Raises:
            ModelError: the model does not embed pictures and texts.
        """
        from vlmflow.inference import loading

        loaded = loading.load(self.model)
        if not (hasattr(loaded.model, "get_image_features") and hasattr(loaded.model, "get_text_features")):
            raise ModelError(
                f"score.model {self.model!r}: {type(loaded.model).__name__} is no dual encoder; give a CLIP or SigLIP"
            )
        return loaded

    def scores(self, pairs: Dataset, wanted: np.ndarray, captions: dict[int, str], engine: Engine) -> np.ndarray:
        """The scores of the rows of which `wanted`, (N,) bool, says so; NaN where the picture cannot be decoded.

        Args:
            captions: by row, those that are not to be as the dataset has them.
        """
        tables = engine.run(_Scores(self), self._tasks("scores", pairs, wanted, captions))
        return np.concatenate([table["score"].to_numpy() for table in tables])

    def places(self, pairs: Dataset, wanted: np.ndarray, engine: Engine) -> np.ndarray:
        """(M, D) unit vectors of the pictures of the wanted rows, in order, unmasked."""
        tables = engine.run(_Places(self), self._tasks("places", pairs, wanted, {}))
        return np.concatenate([np.stack(table["vector"].to_numpy()) for table in tables if len(table)])

    def cosines(self, rows: Iterable[tuple[bytes, str]]) -> np.ndarray:
        """(N,) cosines of encoded pictures and captions, in order; NaN where a picture cannot be decoded."""
        captions: list[str] = []

        def images() -> Iterator[bytes]:
            for image, caption in rows:
                captions.append(caption)
                yield image

        vectors = self.vectors(images())
        if not captions:
            return np.zeros(0)
        numbers = {caption: number for number, caption in enumerate(dict.fromkeys(captions))}
        texts = self._asked("text", list(numbers), self._texts)
        return (vectors * texts[[numbers[caption] for caption in captions]]).sum(axis=1)

    def vectors(self, images: Iterable[bytes]) -> np.ndarray:
        """(N, D) unit vectors of encoded pictures, in order; NaN where one cannot be decoded."""
        images, parts = iter(images), []
        while batch := list(islice(images, self.batch_size)):
            parts.append(self._asked("image", batch, self._images))
        return np.concatenate(parts) if parts else np.zeros((0, 1), np.float32)

    def _tasks(self, kind: str, pairs: Dataset, wanted: np.ndarray, captions: dict[int, str]) -> list[tuple[str, Task]]:
        """One for each part of a shard: file, row groups, wanted rows as bits, other captions of its rows."""
        tasks, start = [], 0
        parameters = {"kind": kind, "code": code_hash(__name__), "encoder": asdict(self) | {"cache": ""}}
        for shard, path, groups, count in parts(pairs):
            end = start + count
            bits = np.packbits(wanted[start:end]).tobytes()
            other = {row - start: text for row, text in captions.items() if start <= row < end}
            decided = {"shard": shard, "groups": groups, "wanted": bits.hex(), "captions": sorted(other.items())}
            tasks.append((key(**decided, **parameters), (path, groups, bits, other)))
            start = end
        return tasks

    def _asked(self, kind: str, content: list[Any], ask: Callable[[list[Any]], np.ndarray]) -> np.ndarray:
        """What the encoder says of `content`: from the cache what it knows, the rest by asking."""
        if self.cache is None:
            return ask(content)
        known = self._known[kind]
        found = known(content, ask)
        known.flush()
        return found

    @cached_property
    def _known(self) -> dict[str, Cache]:
        assert self.cache is not None
        return {kind: Cache(self.cache, self.hash, kind) for kind in ("image", "text")}

    def _images(self, batch: list[bytes]) -> np.ndarray:
        from vlmflow.inference.loading import embed_images

        images = [_decoded(image) for image in batch]
        blank = Image.new("RGB", (32, 32))
        size = min(PICTURES, self.batch_size) if self.loaded.model.device.type == "cpu" else self.batch_size
        full = [image or blank for image in images] + [blank] * (-len(images) % size)
        vectors = embed_images(self.loaded, full, size)[: len(images)]
        vectors[[image is None for image in images]] = np.nan
        return vectors

    def _texts(self, captions: list[str]) -> np.ndarray:
        """(N, D) unit vectors; a batch holds captions of one length, and always as many."""
        from vlmflow.inference.loading import embed_texts, tokenize_captions

        ids = tokenize_captions(self.loaded.processor.tokenizer, self.loaded.model.config, captions)
        # Without a mask all are padded to one length, whatever they say.
        lengths = ids["attention_mask"].sum(1).numpy() if "attention_mask" in ids else np.zeros(len(captions))
        vectors: dict[int, np.ndarray] = {}
        for length in np.unique(lengths):
            places = np.flatnonzero(lengths == length).tolist()
            for start in range(0, len(places), TEXTS):
                part = places[start : start + TEXTS]
                filled = [captions[place] for place in part] + [captions[part[0]]] * (TEXTS - len(part))
                vectors.update(zip(part, embed_texts(self.loaded, filled, TEXTS), strict=False))
        return np.stack([vectors[place] for place in range(len(captions))])


@dataclass(frozen=True)
class _Scores:
    """The scores of those rows of a shard whose bit is set in `wanted`; null where the picture fails."""

    encoder: Encoder

    def __call__(self, shard: str, groups: list[int], wanted: bytes, captions: dict[int, str]) -> pa.Table:
        rows = _wanted(shard, groups, wanted, ["image", "caption", "lines"], self.encoder.batch_size)
        found = self.encoder.cosines(
            (
                text_masking.mask(row["image"]["bytes"], row["lines"] if self.encoder.mask_text else None),
                captions[number] if number in captions else row["caption"],
            )
            for number, row in rows
        )
        return pa.table({"score": pa.array(found, pa.float64(), from_pandas=True)})


@dataclass(frozen=True)
class _Places:
    """The vectors of the pictures of those rows of a shard whose bit is set in `wanted`."""

    encoder: Encoder

    def __call__(self, shard: str, groups: list[int], wanted: bytes, captions: dict[int, str]) -> pa.Table:
        rows = _wanted(shard, groups, wanted, ["image"], self.encoder.batch_size)
        vectors = self.encoder.vectors(row["image"]["bytes"] for _, row in rows)
        flat = pa.array(vectors.astype(np.float32).ravel())
        return pa.table({"vector": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])})


def _wanted(
    shard: str, groups: list[int], wanted: bytes, columns: list[str], size: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and row of each row of the part whose bit is set, `size` in memory at a time."""
    with pq.ParquetFile(shard) as file:
        marks = np.unpackbits(
            np.frombuffer(wanted, np.uint8), count=sum(file.metadata.row_group(group).num_rows for group in groups)
        )
        batches = file.iter_batches(batch_size=size, row_groups=groups, columns=columns)
        rows = (row for batch in batches for row in batch.to_pylist())
        yield from ((number, row) for number, (row, mark) in enumerate(zip(rows, marks, strict=True)) if mark)


def _decoded(data: bytes) -> Image.Image | None:
    from vlmflow.images.decoding import decode

    try:
        return decode(data)
    except MemoryError:
        raise
    except Exception:  # what a smaller decode let pass may still fail in full; Pillow raises nearly every type
        return None
