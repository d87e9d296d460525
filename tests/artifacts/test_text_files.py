"""Text files of users: encodings, line ends and invalid bytes."""

import codecs
from pathlib import Path

import pytest

from vlmflow.artifacts import text_files
from vlmflow.artifacts.text_files import read_lines, read_text, stream_lines
from vlmflow.errors import DataError, RecordError


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("é".encode("latin-1"), "byte 0 (0xe9) is not UTF-8"),
        ("风筝".encode("gbk"), "byte 0 (0xb7) is not UTF-8"),
        ("kite".encode("utf-16"), "the encoding is UTF-16"),
        (codecs.BOM_UTF16_BE + b"\0k", "the encoding is UTF-16"),
        (codecs.BOM_UTF32_LE + b"k\0\0\0", "the encoding is UTF-32"),
        (b"a kite\0", "byte 6 is NUL"),
        (b"x" * 41, "too many bytes: a.txt: 41 bytes, the limit is 40"),
    ],
)
def test_what_is_not_text_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, said: str
) -> None:
    monkeypatch.setattr(text_files, "MAX_TEXT_BYTES", 40)
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(RecordError) as caught:
        read_text(tmp_path / "a.txt")
    assert said in str(caught.value) and "a.txt" in str(caught.value)


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(codecs.BOM_UTF8 + b"kite\r\nboat\n")
    assert read_text(tmp_path / "a.txt") == "kite\r\nboat\n"
    assert read_lines(tmp_path / "a.txt") == ["kite", "boat"]


def test_only_line_ends_split_lines(tmp_path: Path) -> None:
    text = "a\u2028b\x0cc\x85d\x1ee\nf\r\ng"
    (tmp_path / "a.txt").write_text(text, encoding="utf-8", newline="")
    assert read_lines(tmp_path / "a.txt") == ["a\u2028b\x0cc\x85d\x1ee", "f", "g"]


def test_a_bad_byte_is_named_at_its_line_and_byte(tmp_path: Path) -> None:
    content = "ä\n".encode() * 100_000 + b"caf\xe9\n" + b"end\n"
    (tmp_path / "a.txt").write_bytes(content)
    faults = [(number, str(fault)) for number, _, fault in stream_lines(tmp_path / "a.txt") if fault]
    assert faults == [(100_001, f"not text: byte {content.index(0xE9)} (0xe9) is not UTF-8; save it as UTF-8")]
    assert [line for _, line, _ in stream_lines(tmp_path / "a.txt")][-1] == "end\n"
    with pytest.raises(DataError, match=r"a\.txt:100001: not text"):
        read_lines(tmp_path / "a.txt")


def test_a_line_over_the_limit_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "MAX_LINE_BYTES", 10)
    (tmp_path / "a.txt").write_bytes(b"123456789\n" + b"x" * 35 + b"\nend")
    read = [(text[:10], fault.kind if fault else "") for _, text, fault in stream_lines(tmp_path / "a.txt")]
    assert read == [("123456789\n", ""), ("xxxxxxxxxx", "too many bytes"), ("end", "")]
