"""The memo goes by content: what was touched or is gone is not trusted."""

from pathlib import Path

import pytest

from vlmflow.runtime.step_cache import Memo, content_hash, far, key, named


@pytest.fixture
def finished(tmp_path: Path) -> tuple[Memo, dict[str, Path]]:
    """A memo with one note, of a folder and a file."""
    outputs = {"data": tmp_path / "one" / "data", "page": tmp_path / "one" / "page"}
    (outputs["data"] / "deep").mkdir(parents=True)
    (outputs["data"] / "deep" / "shard").write_bytes(b"rows")
    outputs["page"].write_text("hello")
    memo = Memo(tmp_path / ".memo")
    memo.remember("note", outputs, seconds=3)
    return memo, outputs


def test_what_is_unchanged_is_linked(finished: tuple[Memo, dict[str, Path]], tmp_path: Path) -> None:
    memo, outputs = finished
    new = {name: tmp_path / "two" / name for name in outputs}
    note = memo.recall("note", new)
    assert note is not None and note["seconds"] == 3
    assert (new["data"] / "deep" / "shard").read_bytes() == b"rows"
    assert (new["data"] / "deep" / "shard").samefile(outputs["data"] / "deep" / "shard")
    assert new["page"].read_text() == "hello"


@pytest.mark.parametrize("damage", ["edited", "gone", "more"])
def test_what_was_touched_is_not_trusted(finished: tuple[Memo, dict[str, Path]], tmp_path: Path, damage: str) -> None:
    memo, outputs = finished
    shard = outputs["data"] / "deep" / "shard"
    if damage == "edited":
        shard.write_bytes(b"rowz")
    elif damage == "gone":
        shard.unlink()
    else:
        (outputs["data"] / "extra").write_text("")
    new = {name: tmp_path / "two" / name for name in outputs}
    assert memo.recall("note", new) is None
    assert not any(path.exists() for path in new.values())


def test_no_note(finished: tuple[Memo, dict[str, Path]], tmp_path: Path) -> None:
    memo, _ = finished
    assert memo.recall("other", {"data": tmp_path / "x"}) is None


def test_a_content_hash_sees_names_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("1")
    first = content_hash(tmp_path / "a")
    (tmp_path / "a" / "x").rename(tmp_path / "a" / "y")
    assert content_hash(tmp_path / "a") != first
    assert content_hash(tmp_path / "none") == "absent"


def test_a_section_is_what_it_names_too(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"1")
    (tmp_path / "words.txt").write_text("one")
    section = {
        "path": str(tmp_path / "pictures"),
        "curate": {"bad_words": [str(tmp_path / "*.txt")], "none": ""},
        "n": 3,
    }
    before = named(section)
    assert set(before) == {str(tmp_path / "pictures"), str(tmp_path / "words.txt")}
    (tmp_path / "pictures" / "a.png").write_bytes(b"2")
    assert named(section) != before
    assert far({"path": ["s3://bucket/shards"]}) and not far(section)


def test_a_key_sees_every_part() -> None:
    assert key(a=1, b=2) == key(b=2, a=1) != key(a=1, b=3)
