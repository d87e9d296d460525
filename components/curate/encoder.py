"""The dual encoder, run shard by shard: scores of pairs and embeddings of images."""

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
from components.curate.cache import EmbeddingCache
from components.curate.engine import Engine, Task, iter_parts
from vlmflow.artifacts.dataset import Dataset
from vlmflow.artifacts.hashing import cache_key
from vlmflow.errors import ModelError
from vlmflow.images.decoding import decode_or_none
from vlmflow.runtime.code_hash import code_hash

if TYPE_CHECKING:
    from vlmflow.inference.loading import LoadedModel

IMAGE_BATCH, TEXT_BATCH = 32, 64  # batch sizes on a CPU; larger batches do not fit in its caches


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """A dual encoder with its batching and cache.

    The embedding of an image or caption depends on that content and the encoder alone, bit for bit: all batches have
    the same shape, the last one is padded, and captions of one token length are batched together.

    Args:
        model: folder of the checkpoint. hash: of the checkpoint, part of every cache key.
        batch_size: images in memory at a time.
        mask_text: paint over the annotated lines of text before a pair is scored.
        cache: folder that caches embeddings; None caches nothing.
    """

    model: str
    hash: str
    batch_size: int = 256
    mask_text: bool = False
    cache: str | None = None

    @cached_property
    def loaded(self) -> "LoadedModel":
        """The model; each worker loads it on first use.

        Raises:
            ModelError: the model does not embed both images and texts.
        """
        from vlmflow.inference import loading

        loaded = loading.load(self.model)
        if not (hasattr(loaded.model, "get_image_features") and hasattr(loaded.model, "get_text_features")):
            raise ModelError(
                f"score.model {self.model!r}: {type(loaded.model).__name__} is not a dual encoder; use CLIP or SigLIP"
            )
        return loaded

    def score_rows(self, pairs: Dataset, selected: np.ndarray, captions: dict[int, str], engine: Engine) -> np.ndarray:
        """Return the scores (M,) of the rows at `selected`, (N,) bool; NaN where the image cannot be decoded.

        Args:
            captions: rewritten captions by row, which replace those of the dataset.
        """
        tables = engine.run(_ScoreTask(self), self._tasks("scores", pairs, selected, captions))
        return np.concatenate([table["score"].to_numpy() for table in tables])

    def embed_rows(self, pairs: Dataset, selected: np.ndarray, engine: Engine) -> np.ndarray:
        """Return unit vectors (M, D) of the images of the rows at `selected`, (N,) bool, in order, without masking."""
        tables = engine.run(_EmbedTask(self), self._tasks("embeddings", pairs, selected, {}))
        return np.concatenate([np.stack(table["vector"].to_numpy()) for table in tables if len(table)])

    def cosine_similarities(self, rows: Iterable[tuple[bytes, str]]) -> np.ndarray:
        """Return cosines (N,) of encoded images and captions, in order; NaN where an image cannot be decoded."""
        captions: list[str] = []

        def images() -> Iterator[bytes]:
            for image, caption in rows:
                captions.append(caption)
                yield image

        vectors = self.embed_images(images())
        if not captions:
            return np.zeros(0)
        indices = {caption: index for index, caption in enumerate(dict.fromkeys(captions))}
        texts = self._cached_or_computed("text", list(indices), self._compute_text_embeddings)
        return (vectors * texts[[indices[caption] for caption in captions]]).sum(axis=1)

    def embed_images(self, images: Iterable[bytes]) -> np.ndarray:
        """Return unit vectors (N, D) of encoded images, in order; NaN where an image cannot be decoded."""
        images, batches = iter(images), []
        while batch := list(islice(images, self.batch_size)):
            batches.append(self._cached_or_computed("image", batch, self._compute_image_embeddings))
        return np.concatenate(batches) if batches else np.zeros((0, 1), np.float32)

    def _tasks(
        self, kind: str, pairs: Dataset, selected: np.ndarray, captions: dict[int, str]
    ) -> list[tuple[str, Task]]:
        """Return a task for each part of a shard: file, row groups, selected rows as bits, rewritten captions."""
        tasks, start = [], 0
        parameters = {"kind": kind, "code": code_hash(__name__), "encoder": asdict(self) | {"cache": ""}}
        for shard, path, groups, count in iter_parts(pairs):
            end = start + count
            bits = np.packbits(selected[start:end]).tobytes()
            rewritten = {row - start: text for row, text in captions.items() if start <= row < end}
            inputs = {"shard": shard, "groups": groups, "selected": bits.hex(), "captions": sorted(rewritten.items())}
            tasks.append((cache_key(**inputs, **parameters), (path, groups, bits, rewritten)))
            start = end
        return tasks

    def _cached_or_computed(
        self, kind: str, contents: list[Any], compute: Callable[[list[Any]], np.ndarray]
    ) -> np.ndarray:
        """Return the embeddings of `contents`; compute and cache those that the cache lacks."""
        if self.cache is None:
            return compute(contents)
        cache = self._caches[kind]
        embeddings = cache.get_or_compute(contents, compute)
        cache.flush()
        return embeddings

    @cached_property
    def _caches(self) -> dict[str, EmbeddingCache]:
        assert self.cache is not None
        return {kind: EmbeddingCache(self.cache, self.hash, kind) for kind in ("image", "text")}

    def _compute_image_embeddings(self, batch: list[bytes]) -> np.ndarray:
        from vlmflow.inference.embedding import embed_images

        images = [decode_or_none(image) for image in batch]  # the reduced decode passed, the full one may fail
        blank = Image.new("RGB", (32, 32))
        size = min(IMAGE_BATCH, self.batch_size) if self.loaded.model.device.type == "cpu" else self.batch_size
        padded = [image or blank for image in images] + [blank] * (-len(images) % size)
        vectors = embed_images(self.loaded, padded, size)[: len(images)]
        vectors[[image is None for image in images]] = np.nan
        return vectors

    def _compute_text_embeddings(self, captions: list[str]) -> np.ndarray:
        """Return unit vectors (N, D); a batch has captions of one token length, and always the same size."""
        from vlmflow.inference.embedding import embed_texts
        from vlmflow.inference.inputs import tokenize_captions

        ids = tokenize_captions(self.loaded.processor.tokenizer, self.loaded.model.config, captions)
        # Without an attention mask all captions are padded to one length.
        lengths = ids["attention_mask"].sum(1).numpy() if "attention_mask" in ids else np.zeros(len(captions))
        vectors: dict[int, np.ndarray] = {}
        for length in np.unique(lengths):
            indices = np.flatnonzero(lengths == length).tolist()
            for start in range(0, len(indices), TEXT_BATCH):
                part = indices[start : start + TEXT_BATCH]
                padded = [captions[index] for index in part] + [captions[part[0]]] * (TEXT_BATCH - len(part))
                vectors.update(zip(part, embed_texts(self.loaded, padded, TEXT_BATCH), strict=False))
        return np.stack([vectors[index] for index in range(len(captions))])


@dataclass(frozen=True)
class _ScoreTask:
    """Score the rows of a part whose bit is set in `selected`; null where the image cannot be decoded."""

    encoder: Encoder

    def __call__(self, shard: str, groups: list[int], selected: bytes, captions: dict[int, str]) -> pa.Table:
        rows = _selected_rows(shard, groups, selected, ["image", "caption", "lines"], self.encoder.batch_size)
        scores = self.encoder.cosine_similarities(
            (
                text_masking.mask_lines(row["image"]["bytes"], row["lines"] if self.encoder.mask_text else None),
                captions[number] if number in captions else row["caption"],
            )
            for number, row in rows
        )
        return pa.table({"score": pa.array(scores, pa.float64(), from_pandas=True)})


@dataclass(frozen=True)
class _EmbedTask:
    """Embed the images of the rows of a part whose bit is set in `selected`."""

    encoder: Encoder

    def __call__(self, shard: str, groups: list[int], selected: bytes, captions: dict[int, str]) -> pa.Table:
        rows = _selected_rows(shard, groups, selected, ["image"], self.encoder.batch_size)
        vectors = self.encoder.embed_images(row["image"]["bytes"] for _, row in rows)
        flat = pa.array(vectors.astype(np.float32).ravel())
        return pa.table({"vector": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])})


def _selected_rows(
    shard: str, groups: list[int], selected: bytes, columns: list[str], size: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield number and row of each row of the part whose bit is set; `size` rows are in memory at a time."""
    with pq.ParquetFile(shard) as file:
        bits = np.unpackbits(
            np.frombuffer(selected, np.uint8), count=sum(file.metadata.row_group(group).num_rows for group in groups)
        )
        batches = file.iter_batches(batch_size=size, row_groups=groups, columns=columns)
        rows = (row for batch in batches for row in batch.to_pylist())
        yield from ((number, row) for number, (row, bit) in enumerate(zip(rows, bits, strict=True)) if bit)
