"""Text files that users give, decoded in one way for all readers: UTF-8, with or without a byte-order mark.

Other encodings, NUL and invalid bytes are refused and named with their position, never replaced.
"""

import codecs
import io
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

from vlmflow.errors import DataError, RecordError

if TYPE_CHECKING:
    from upath import UPath

MAX_TEXT_BYTES = 2**24  # of a caption or a text file; longer ones are refused
MAX_LINE_BYTES = 2**29  # of a line, which may hold an image as a data URI
_MARKS = ((codecs.BOM_UTF32_LE, "UTF-32"), (codecs.BOM_UTF32_BE, "UTF-32"), (codecs.BOM_UTF16_LE, "UTF-16"),
          (codecs.BOM_UTF16_BE, "UTF-16"))  # fmt: skip


def check_encoding(start: bytes) -> None:
    """Raise RecordError if a file that begins with `start` has the byte-order mark of UTF-16 or UTF-32."""
    if encoding := next((name for mark, name in _MARKS if start.startswith(mark)), None):
        raise RecordError("not text", f"the encoding is {encoding}; save it as UTF-8")


def decode_text(content: bytes, offset: int = 0) -> str:
    """Return `content` as text, without its byte-order mark.

    Args:
        content: the bytes, from byte `offset` of their file.

    Raises:
        RecordError: it is not UTF-8, or contains NUL.
    """
    if offset == 0:
        check_encoding(content)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RecordError(
            "not text", f"byte {offset + error.start} (0x{content[error.start]:02x}) is not UTF-8; save it as UTF-8"
        ) from None
    if (at := content.find(b"\0")) >= 0:
        raise RecordError("not text", f"byte {offset + at} is NUL")
    return text.removeprefix("\ufeff") if offset == 0 else text


def read_text(file: "Path | UPath") -> str:
    """Return the text of a small file.

    Raises:
        RecordError: it cannot be read, has more than 16 MiB, or is not text.
    """
    try:
        size = file.stat().st_size
        if size > MAX_TEXT_BYTES:
            raise RecordError("too many bytes", f"{file.name}: {size} bytes, the limit is {MAX_TEXT_BYTES}")
        content = file.read_bytes()
    except OSError as error:
        raise RecordError("unreadable file", f"{file.name}: {error}") from None
    try:
        return decode_text(content)
    except RecordError as reason:
        raise RecordError(reason.kind, f"{file.name}: {reason.detail}") from None


def read_lines(file: "Path | UPath") -> list[str]:
    """Return the lines of a file in which every line counts, such as a list of classes.

    Raises:
        DataError: it cannot be read, or a line is not text.
    """
    lines = []
    for number, line, fault in stream_lines(file):
        if fault:
            raise DataError(f"{file}:{number}: {fault}")
        lines.append(line.rstrip("\r\n"))
    return lines


def stream_lines(file: "Path | UPath") -> Iterator[tuple[int, str, RecordError | None]]:
    """Stream the lines of a file: number from 1, text with its line end, and the error if it is not text.

    Invalid bytes of a line with an error are replaced by U+FFFD.

    Raises:
        DataError: the file cannot be read, or is UTF-16 or UTF-32.
    """
    offset = 0
    try:
        with file.open("rb") as handle:
            for number, (raw, size) in enumerate(_raw_lines(handle), 1):
                if number == 1:
                    check_encoding(raw)
                try:
                    if size > MAX_LINE_BYTES:
                        raise RecordError("too many bytes", f"{size} bytes, the limit is {MAX_LINE_BYTES}")
                    text, fault = decode_text(raw, offset), None
                except RecordError as reason:
                    text, fault = raw.decode("utf-8", "replace").replace("\0", "\ufffd"), reason
                yield number, text, fault
                offset += size
    except (OSError, RecordError) as error:
        place = f" after byte {offset}" if offset else ""
        raise DataError(f"{file}: cannot be read{place}: {error}") from None


def _raw_lines(handle: IO[bytes]) -> Iterator[tuple[bytes, int]]:
    """Yield each line and its size in bytes; a line over the limit is cut."""
    buffered = handle if isinstance(handle, io.BufferedReader) else io.BufferedReader(handle)  # type: ignore[arg-type]
    while line := buffered.readline(MAX_LINE_BYTES + 1):
        size, last = len(line), line
        while len(last) > MAX_LINE_BYTES and not last.endswith(b"\n"):
            last = buffered.readline(MAX_LINE_BYTES + 1)
            size += len(last)
        yield (line[:80] if size > MAX_LINE_BYTES else line), size
