"""The step cache compares contents: changed or deleted outputs are not reused."""

from pathlib import Path

import pytest

from vlmflow.artifacts.hashing import cache_key, content_hash
from vlmflow.runtime.fingerprint import hash_named_files, names_remote_path
from vlmflow.runtime.local_step import replace_in_strings
from vlmflow.runtime.step_cache import StepCache


@pytest.fixture
def stored(tmp_path: Path) -> tuple[StepCache, dict[str, Path]]:
    """A cache with one entry, whose outputs are a folder and a file."""
    outputs = {"data": tmp_path / "one" / "data", "page": tmp_path / "one" / "page"}
    (outputs["data"] / "deep").mkdir(parents=True)
    (outputs["data"] / "deep" / "shard").write_bytes(b"rows")
    outputs["page"].write_text("hello")
    cache = StepCache(tmp_path / ".step_cache")
    cache.store("key", outputs, seconds=3)
    return cache, outputs


def test_unchanged_outputs_are_linked(stored: tuple[StepCache, dict[str, Path]], tmp_path: Path) -> None:
    cache, outputs = stored
    new = {name: tmp_path / "two" / name for name in outputs}
    entry = cache.lookup("key", new)
    assert entry is not None and entry["seconds"] == 3
    assert (new["data"] / "deep" / "shard").read_bytes() == b"rows"
    assert (new["data"] / "deep" / "shard").samefile(outputs["data"] / "deep" / "shard")
    assert new["page"].read_text() == "hello"


@pytest.mark.parametrize("change", ["edited", "deleted", "added"])
def test_changed_outputs_are_not_reused(stored: tuple[StepCache, dict[str, Path]], tmp_path: Path, change: str) -> None:
    cache, outputs = stored
    shard = outputs["data"] / "deep" / "shard"
    if change == "edited":
        shard.write_bytes(b"rowz")
    elif change == "deleted":
        shard.unlink()
    else:
        (outputs["data"] / "extra").write_text("")
    new = {name: tmp_path / "two" / name for name in outputs}
    assert cache.lookup("key", new) is None
    assert not any(path.exists() for path in new.values())


def test_an_unknown_key_has_no_entry(stored: tuple[StepCache, dict[str, Path]], tmp_path: Path) -> None:
    cache, _ = stored
    assert cache.lookup("other", {"data": tmp_path / "x"}) is None


def test_a_content_hash_depends_on_names_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("1")
    first = content_hash(tmp_path / "a")
    (tmp_path / "a" / "x").rename(tmp_path / "a" / "y")
    assert content_hash(tmp_path / "a") != first
    assert content_hash(tmp_path / "none") == "absent"


def test_a_content_hash_covers_linked_folders(tmp_path: Path) -> None:
    for folder in ("disk", "set [v2]"):
        (tmp_path / folder).mkdir()
    (tmp_path / "set [v2]" / "images").symlink_to(tmp_path / "disk")
    (tmp_path / "set [v2]" / "self").symlink_to(tmp_path / "set [v2]")
    (tmp_path / "disk" / "a.png").write_bytes(b"1")
    section = {"path": str(tmp_path / "set [v2]"), "note": "**bold** or not? " + "x" * 300}
    before = hash_named_files(section)
    assert set(before) == {section["path"]}
    (tmp_path / "disk" / "a.png").write_bytes(b"2")
    assert hash_named_files(section) != before


def test_the_content_of_files_that_a_section_names_is_hashed(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"1")
    (tmp_path / "words.txt").write_text("one")
    section = {
        "path": str(tmp_path / "images"),
        "curate": {"blocklist": [str(tmp_path / "*.txt")], "none": ""},
        "n": 3,
    }
    before = hash_named_files(section)
    assert set(before) == {str(tmp_path / "images"), str(tmp_path / "words.txt")}
    (tmp_path / "images" / "a.png").write_bytes(b"2")
    assert hash_named_files(section) != before
    assert names_remote_path({"path": ["s3://bucket/shards"]}) and not names_remote_path(section)


def test_a_key_depends_on_every_part() -> None:
    assert cache_key(a=1, b=2) == cache_key(b=2, a=1) != cache_key(a=1, b=3)


def test_a_path_with_accents_and_quotes_is_replaced_in_json_values() -> None:
    value = {"artifacts": [{"uri": '/é "x"/data', "n": 1}]}
    assert replace_in_strings(value, '/é "x"', "/new") == {"artifacts": [{"uri": "/new/data", "n": 1}]}
