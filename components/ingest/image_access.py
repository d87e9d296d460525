"""Which image files the rows of a source may name: those in its folders, and what the recipe allows.

A row is data of others. If it could name any address, reading it would send requests into the network of this machine
(`http://…`, `webhdfs://…`), also through archives (`zip://a::http://…`), or use its credentials (`s3://…`).
"""

import posixpath
import re
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any

from upath import UPath

from vlmflow.artifacts.addresses import is_remote
from vlmflow.errors import RecordError
from vlmflow.images import image_bytes

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|.*::")
_REVISION = re.compile(r"^(hf://datasets/[^@]+?)@[^/]+")  # of a dataset of the hub
_FILE = "file://"


class ImageAccess:
    """Read the images that rows name.

    Args:
        addresses: beginnings of the addresses that rows may name, such as `s3://bucket/images/`.
        refuse_outside: whether to refuse local files outside of the folders of a row, or count them in `outside`.
    """

    def __init__(self, addresses: tuple[str, ...], *, refuse_outside: bool):
        self.addresses = tuple(address.rstrip("/") + "/" for address in addresses)
        self.refuse_outside = refuse_outside
        self.outside: list[str] = []  # names of files that were read

    def read(self, value: Any, folders: list[UPath]) -> bytes:
        """Return the encoded bytes of an image; see `image_bytes.read`.

        Raises:
            RecordError: the row may not name the file, or it cannot be read.
        """
        name = image_bytes.resolve(value)
        if isinstance(name, bytes):
            return name
        path = name.removeprefix(_FILE) if name.startswith(f"{_FILE}/") else name
        if _ADDRESS.match(path):
            self._check_address(path)
            return image_bytes.read(path, folders)
        bases = tuple(map(_base, map(str, folders)))
        is_inside = [posixpath.normpath(posixpath.join(base, path)).startswith(bases) for base in bases]
        inside = [folder for folder, one in zip(folders, is_inside, strict=True) if one]
        others = [folder for folder, one in zip(folders, is_inside, strict=True) if not one]
        if not others:
            return image_bytes.read(path, inside)
        if inside:
            try:
                return image_bytes.read(path, inside)
            except RecordError as reason:
                if reason.kind != image_bytes.NO_FILE:
                    raise
        if self.refuse_outside:
            raise RecordError("outside the source", f"{name[:200]!r}; set ingest.outside_files to `read` to allow it")
        content = image_bytes.read(path, others)
        self.outside.append(name)
        return content

    def _check_address(self, name: str) -> None:
        if name.startswith(("http://", "https://")):
            return  # refused with a remedy of its own
        address = _REVISION.sub(r"\1", name)
        allowed = address.startswith(self.addresses) and "::" not in name and ".." not in PurePosixPath(name).parts
        if not allowed:
            beginning = name.rpartition("/")[0][:200] + "/"
            raise RecordError("address not allowed", f"{name[:200]!r}; add {beginning!r} to ingest.addresses")


@lru_cache(maxsize=1024)
def _base(folder: str) -> str:
    """Return the absolute, normalized path of a folder, with a slash behind it."""
    return posixpath.normpath(folder if is_remote(folder) else posixpath.abspath(folder)).rstrip("/") + "/"
