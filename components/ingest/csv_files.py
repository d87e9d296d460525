"""CSV and TSV files, read row by row: a row that is not valid is left out, and the rows after it are read."""

import csv
import re
from collections import Counter, deque
from collections.abc import Iterator
from itertools import chain
from typing import Any

from upath import UPath

from components.ingest.record import malformed
from vlmflow.artifacts.text_files import stream_lines
from vlmflow.errors import DataError, RecordError

Line = tuple[int, str, RecordError | None]
MAX_RECORD_CHARS = 2**20  # of a record of several lines
DELIMITERS = ",;\t"  # of a `.csv` file: the first that its header contains; some spreadsheets write `;`
_CARRIAGE_RETURN = re.compile(r"(?<=\r)(?!\n)")


def read_csv(file: UPath) -> Iterator[tuple[int, dict[str, Any], RecordError | None]]:
    """Stream the rows of a CSV or TSV file with a header: line number, columns, and the error if it cannot be read.

    Columns without a name are left out. A row of TSV is one line, in which only a field that is enclosed in quotes as a
    whole is unquoted: in captions of the web, quotes are letters.

    Raises:
        DataError: the header cannot be read or has a name twice, or the file cannot be read.
    """
    csv.field_size_limit(2**31 - 1)  # the text of one receipt can exceed the default of 128 KiB
    lines = _split_at_carriage_returns(stream_lines(file))
    first = next(lines, None)
    if first is None:
        return
    tabs = file.suffix.lower() == ".tsv"
    delimiter = "\t" if tabs else next((sign for sign in DELIMITERS if sign in first[1]), ",")
    records = (_tsv_records if tabs else _csv_records)(chain([first], lines), delimiter)
    _, names, fault = next(records)
    if fault:
        raise DataError(f"{file}: the header cannot be read: {fault}")
    if twice := [name for name, count in Counter(names).items() if name and count > 1]:
        raise DataError(f"{file}: column {twice[0]!r} occurs twice in the header; rename or remove one")
    for number, fields, reason in records:
        if not reason and len(fields) < 2 and not "".join(fields).strip():
            continue  # an empty line
        if not reason and len(fields) != len(names):
            reason = malformed(f"{len(fields)} fields, the header has {len(names)}")
        values = {} if reason else {name: field for name, field in zip(names, fields, strict=True) if name}
        yield number, values, reason


def _tsv_records(lines: Iterator[Line], delimiter: str) -> Iterator[tuple[int, list[str], RecordError | None]]:
    for number, text, fault in lines:
        line = text.rstrip("\r\n")
        yield number, [_unquote(field) for field in line.split(delimiter)] if line else [], fault


def _unquote(field: str) -> str:
    inner = field[1:-1].replace('""', "")
    quoted = len(field) > 1 and field[0] == field[-1] == '"' and '"' not in inner
    return field[1:-1].replace('""', '"') if quoted else field


def _csv_records(lines: Iterator[Line], delimiter: str) -> Iterator[tuple[int, list[str], RecordError | None]]:
    """Yield the first line number, the fields and the error of each record.

    Of a record that is not valid, only the first line is left out: a quote that is not closed would take the rest of
    the file with it.
    """
    source = _RecordLines(lines)
    reader = csv.reader(source, delimiter=delimiter, strict=True)
    while True:
        source.start_record()
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            source.read_again()
            yield source.taken[0][0], [], malformed(f"not valid CSV: {error}")
            continue
        bad = next(((number, fault) for number, _, fault in source.taken if fault), None)
        yield (bad[0], [], bad[1]) if bad else (source.taken[0][0], fields, None)


class _RecordLines:
    """The lines for `csv.reader`; `taken` are those of the current record."""

    def __init__(self, lines: Iterator[Line]):
        self.lines = lines
        self.waiting: deque[Line] = deque()  # lines to be read again
        self.taken: list[Line] = []
        self.length = 0  # characters of `taken`

    def start_record(self) -> None:
        """Forget the lines of the last record."""
        self.taken, self.length = [], 0

    def read_again(self) -> None:
        """Give back the lines of the current record, except its first one."""
        self.waiting.extendleft(reversed(self.taken[1:]))

    def __iter__(self) -> "_RecordLines":
        return self

    def __next__(self) -> str:
        if self.length > MAX_RECORD_CHARS and len(self.taken) > 1:
            raise csv.Error(f"a quote is not closed within {MAX_RECORD_CHARS} characters")
        line = self.waiting.popleft() if self.waiting else next(self.lines)
        self.taken.append(line)
        self.length += len(line[1])
        return line[1]


def _split_at_carriage_returns(lines: Iterator[Line]) -> Iterator[Line]:
    """Split lines that end with a carriage return alone; numbers count all lines."""
    number = 0
    for _, text, fault in lines:
        for part in _CARRIAGE_RETURN.split(text) if "\r" in text else (text,):
            if part:
                number += 1
                yield number, part, fault
