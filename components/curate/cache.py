"""A cache of what an encoder said, bound to what it saw and to how.

The name of an entry is the hash of the picture, or of the caption; the folder is named by the encoder's hash
and the preprocessing. So an unchanged encoder is never asked twice, and a changed one, or a changed
preprocessing, finds nothing: a score that no longer holds cannot be read.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlmflow.runtime.code_hash import code_hash
from vlmflow.runtime.step_cache import key


def binding(encoder: str) -> str:
    """The name under which the words of the encoder of hash `encoder` hold: it, and all code on the way to it.

    The processor's own settings are files of the encoder's folder, and so are in its hash; libraries are in the lock,
    which is part of the code's.
    """
    return key(encoder=encoder, code=code_hash("components.curate.encoder"))


class Cache:
    """Vectors by the hash of what they are of; they stay on disk until they are asked for.

    Parts are written whole, under names of their contents, so that workers need not wait for one another and a
    killed run leaves what it finished.

    Args:
        folder: of all encoders. encoder: its hash. kind: of content: image or text.
    """

    def __init__(self, folder: str | Path, encoder: str, kind: str):
        self.folder = Path(folder) / binding(encoder) / kind
        self.known: dict[bytes, np.ndarray] = {}
        self.fresh: list[bytes] = []
        for part in sorted(self.folder.glob("*.npy")):
            table = np.asarray(np.load(part, mmap_mode="r", allow_pickle=False))
            self.known.update(zip((name.tobytes() for name in table["name"]), table["vector"], strict=True))

    def __call__(self, content: Sequence[bytes | str], ask: Callable[[list[Any]], np.ndarray]) -> np.ndarray:
        """(N, D) the vectors of pictures or captions; `ask` gives those of the ones that are not known, in order."""
        names = [_name(one) for one in content]
        missing = {name: one for name, one in zip(names, content, strict=True) if name not in self.known}
        if missing:
            self.known.update(zip(missing, np.asarray(ask(list(missing.values())), np.float32), strict=True))
            self.fresh += missing
        return np.stack([self.known[name] for name in names])

    def flush(self) -> None:
        """Write what is new beside, then rename it."""
        if not self.fresh:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        width = len(self.known[self.fresh[0]])
        table = np.empty(len(self.fresh), dtype=[("name", "V16"), ("vector", "<f4", (width,))])
        table["name"] = np.frombuffer(b"".join(self.fresh), dtype="V16")
        table["vector"] = np.stack([self.known[name] for name in self.fresh])
        target = self.folder / f"{hashlib.blake2b(table.tobytes(), digest_size=16).hexdigest()}.npy"
        beside = target.with_suffix(f".{os.getpid()}.partial")
        with beside.open("wb") as file:
            np.save(file, table, allow_pickle=False)
        beside.replace(target)
        self.fresh.clear()


def _name(content: bytes | str) -> bytes:
    data = content if isinstance(content, bytes) else content.encode()
    return hashlib.blake2b(data, digest_size=16).digest()
