"""A cache of embeddings on disk.

A folder belongs to one encoder with its preprocessing, and an entry is named by the hash of the image or caption.
So content is embedded once per encoder, and a changed encoder or preprocessing never reads stale embeddings.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlmflow.artifacts.hashing import cache_key
from vlmflow.runtime.code_hash import code_hash


def cache_namespace(encoder: str) -> str:
    """Return the folder name for the encoder with hash `encoder`: a hash of it and of the code that runs it.

    The hash of the encoder covers the processor's settings, and the hash of the code covers the lock file with the
    versions of the libraries.
    """
    return cache_key(encoder=encoder, code=code_hash("components.curate.encoder"))


class EmbeddingCache:
    """Embeddings by the hash of their content, memory-mapped until they are used.

    Each flush writes one file, named by its content. So workers need not wait for each other, and a run that is
    killed leaves what it flushed.

    Args:
        folder: of all encoders. encoder: hash of the encoder. kind: of the content, image or text.
    """

    def __init__(self, folder: str | Path, encoder: str, kind: str):
        self.folder = Path(folder) / cache_namespace(encoder) / kind
        self.vectors: dict[bytes, np.ndarray] = {}
        self.unsaved: list[bytes] = []
        for part in sorted(self.folder.glob("*.npy")):
            table = np.asarray(np.load(part, mmap_mode="r", allow_pickle=False))
            self.vectors.update(zip((name.tobytes() for name in table["name"]), table["vector"], strict=True))

    def get_or_compute(self, contents: Sequence[bytes | str], compute: Callable[[list[Any]], np.ndarray]) -> np.ndarray:
        """Return the embeddings (N, D) of images or captions; `compute` returns the missing ones, in order."""
        names = [_digest(content) for content in contents]
        missing = {name: content for name, content in zip(names, contents, strict=True) if name not in self.vectors}
        if missing:
            self.vectors.update(zip(missing, np.asarray(compute(list(missing.values())), np.float32), strict=True))
            self.unsaved += missing
        return np.stack([self.vectors[name] for name in names])

    def flush(self) -> None:
        """Write the new embeddings to a file, atomically."""
        if not self.unsaved:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        size = len(self.vectors[self.unsaved[0]])
        table = np.empty(len(self.unsaved), dtype=[("name", "V16"), ("vector", "<f4", (size,))])
        table["name"] = np.frombuffer(b"".join(self.unsaved), dtype="V16")
        table["vector"] = np.stack([self.vectors[name] for name in self.unsaved])
        target = self.folder / f"{hashlib.blake2b(table.tobytes(), digest_size=16).hexdigest()}.npy"
        partial = target.with_suffix(f".{os.getpid()}.partial")
        with partial.open("wb") as file:
            np.save(file, table, allow_pickle=False)
        partial.replace(target)
        self.unsaved.clear()


def _digest(content: bytes | str) -> bytes:
    data = content if isinstance(content, bytes) else content.encode()
    return hashlib.blake2b(data, digest_size=16).digest()
