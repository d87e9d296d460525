"""JSON of a source, read in one way by all readers: a key must not occur twice in an object, and NaN is a number."""

import ast
import codecs
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import IO, Any, NoReturn

from upath import UPath

from components.ingest.record import malformed
from vlmflow.artifacts.text_files import check_encoding
from vlmflow.errors import DataError, RecordError

CHUNK_BYTES = 2**20
MARK_BYTES = 4  # of the longest byte-order mark
MAX_VALUE_CHARS = 2**29  # of one item of a document
LONGEST_LITERAL = len("-Infinity")
_SPACE = re.compile(r"[ \t\r\n]*")
_INVALID_BYTE = re.compile("[\udc80-\udcff]")


def parse_json(text: str) -> Any:
    """Return the value of a JSON text.

    Raises:
        RecordError: it is not JSON, or an object has a key twice.
    """
    repeated: list[str] = []
    try:
        value = json.loads(text, object_pairs_hook=_collect_repeated(repeated))
    except (ValueError, RecursionError) as error:
        raise malformed(f"not JSON: {error}") from None
    if repeated:
        raise _repeated_key(repeated)
    return value


def parse_literal(text: str) -> Any:
    """Return the value of a list or an object in a cell of text: JSON, or Python as pandas writes it.

    Raises:
        RecordError: it is neither.
    """
    try:
        return parse_json(text)
    except RecordError as reason:
        try:
            return ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            raise reason from None


def stream_json(file: UPath, key: str = "") -> Iterator[tuple[Any, RecordError | None]]:
    """Stream the items of a JSON array: the document itself, or the entry `key` of the document, an object.

    Yields:
        Each item, with an error if it contains bytes that are not UTF-8, or an object with a key twice.

    Raises:
        DataError: the file is not JSON, is UTF-16 or UTF-32, is truncated, or is no array or object with the entry.
    """
    try:
        with file.open("rb") as handle:
            document = _Document(file, handle)
            start = document.peek()
            if start == "[" and not key:
                yield from document.items()
            elif start == "{":
                yield from _entry(document, key)
            else:
                document.fail(f"expected {f'an object with `{key}`' if key else 'an array'}", document.at)
            if document.peek():
                document.fail("more than one value", document.at)
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error}; get the file again") from None


def _entry(document: "_Document", key: str) -> Iterator[tuple[Any, RecordError | None]]:
    seen: list[str] = []
    document.skip("{")
    while document.peek() != "}":
        if seen:
            document.skip(",")
        name = document.value()[0]
        if name in seen:
            document.fail(f"key {name!r} occurs twice", document.at)
        seen.append(name)
        document.skip(":")
        if document.peek() != "[":
            document.value()
            continue
        for item in document.items():
            if name == key:
                yield item
    document.skip("}")
    if not key:
        raise DataError(
            f"{document.file}: a JSON object with {', '.join(map(str, seen)) or 'no key'}, expected an array of rows; "
            "write the array alone, or name a file with one object per line .jsonl"
        )


class _Document:
    """A JSON document, of which one value at a time is in memory."""

    def __init__(self, file: UPath, handle: IO[bytes]):
        self.file, self.handle = file, handle
        self.text, self.at = "", 0
        self.line = 1  # of the start of `text`
        self.bytes_read, self.ended = 0, False
        # Invalid bytes become lone surrogates, which no valid UTF-8 contains, so that only their item is lost.
        self.decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self.repeated: list[str] = []
        self.scan = json.JSONDecoder(object_pairs_hook=_collect_repeated(self.repeated)).raw_decode

    def peek(self) -> str:
        """Return the next character that is not white space; "" at the end."""
        while True:
            self.at = _SPACE.match(self.text, self.at).end()  # type: ignore[union-attr]  # matches everywhere
            if self.at < len(self.text) or self.ended:
                return self.text[self.at : self.at + 1]
            self._read()

    def skip(self, sign: str) -> None:
        """Read `sign`."""
        if self.peek() != sign:
            self.fail(f"expected {sign!r}", self.at)
        self.at += 1

    def value(self) -> tuple[Any, RecordError | None]:
        """Read a value."""
        self.peek()
        while True:
            self.repeated.clear()
            try:
                value, end = self.scan(self.text, self.at)
                if end + 2 < len(self.text) or self.ended:  # of a number cut off at `1e+`, `1` would be a value
                    fault = self._fault(end)
                    self.at = end
                    return value, fault
            except json.JSONDecodeError as error:
                unfinished = error.msg.startswith("Unterminated") or error.pos > len(self.text) - LONGEST_LITERAL
                if self.ended or not unfinished:
                    self.fail(error.msg, error.pos)
            except (ValueError, RecursionError) as error:
                self.fail(str(error), self.at)
            if len(self.text) - self.at > MAX_VALUE_CHARS:
                self.fail(f"a value of more than {MAX_VALUE_CHARS} characters", self.at)
            self._read()

    def items(self) -> Iterator[tuple[Any, RecordError | None]]:
        """Read an array."""
        self.skip("[")
        first = True
        while self.peek() != "]":
            if not first:
                self.skip(",")
            yield self.value()
            first = False
        self.skip("]")

    def fail(self, reason: str, at: int) -> NoReturn:
        """Raise DataError for the character `at` of the text."""
        end = ", where the file ends" if self.ended and at >= len(self.text.rstrip()) else ""
        raise DataError(
            f"{self.file}:{self._line(at)}: not valid JSON: {reason}{end}; correct the line, or get the file again"
        )

    def _fault(self, end: int) -> RecordError | None:
        if self.repeated:
            return _repeated_key(self.repeated)
        invalid = _INVALID_BYTE.search(self.text, self.at, end)
        if invalid is None:
            return None
        later = self.text[invalid.start() :].encode("utf-8", "surrogateescape") + self.decoder.getstate()[0]
        return RecordError(
            "not text", f"line {self._line(invalid.start())}, byte {self.bytes_read - len(later)} is not UTF-8"
        )

    def _line(self, at: int) -> int:
        return self.line + self.text.count("\n", 0, at)

    def _read(self) -> None:
        """Append the next bytes, as many as there are characters left, so that a long value is scanned few times."""
        self.line = self._line(self.at)
        rest = self.text[self.at :]
        content = self.handle.read(max(CHUNK_BYTES, MARK_BYTES, len(rest)))
        text = self.decoder.decode(content, final=not content)
        if self.bytes_read == 0:
            try:
                check_encoding(content)
            except RecordError as reason:
                raise DataError(f"{self.file}: {reason}") from None
            text = text.removeprefix("\ufeff")
        self.bytes_read += len(content)
        self.text, self.at, self.ended = rest + text, 0, not content


def _collect_repeated(repeated: list[str]) -> Callable[[list[tuple[str, Any]]], dict[str, Any]]:
    """Return a hook that builds the objects and appends the keys that occur twice in one to `repeated`."""

    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            repeated.extend(key for key, n in Counter(name for name, _ in pairs).items() if n > 1)
        return values

    return build


def _repeated_key(repeated: list[str]) -> RecordError:
    return malformed(f"key {repeated[0]!r} occurs twice in one object")
