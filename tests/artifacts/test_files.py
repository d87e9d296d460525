import os
import unicodedata
from pathlib import Path

import pytest
from upath import UPath

from vlmflow.artifacts.files import describe_missing, find_file, match, walk
from vlmflow.errors import RecordError

DECOMPOSED = unicodedata.normalize("NFD", "Übung é.jpg")


def touch(root: Path, *names: str) -> UPath:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return UPath(root)


def names(files: list[UPath], root: Path | UPath) -> list[str]:
    return [str(file.relative_to(str(root))) for file in files]


def test_the_walk_follows_links_but_no_loop_and_skips_hidden_files(tmp_path: Path) -> None:
    touch(tmp_path / "disk", "a.jpg")
    root = touch(tmp_path / "set", "b [v2]/c.JPG", "._b.jpg", ".git/d", "__MACOSX/e.jpg", "deep/er/f.jpg")
    (root / "images").symlink_to(tmp_path / "disk")
    (root / "deep" / "self").symlink_to(root)
    (root / "broken.jpg").symlink_to("/nowhere/g.jpg")
    (root / "loop.jpg").symlink_to("loop.jpg")
    os.mkfifo(tmp_path / "set" / "pipe.jpg")
    assert names(walk(root), root) == ["b [v2]/c.JPG", "broken.jpg", "deep/er/f.jpg", "images/a.jpg", "loop.jpg"]
    assert names(walk(root, depth=2), root) == ["b [v2]/c.JPG", "broken.jpg", "images/a.jpg", "loop.jpg"]


def test_the_walk_of_a_remote_folder() -> None:
    root = UPath("memory://walk/set")
    for name in ("a/b.jpg", "c.jpg", ".hidden/d.jpg", "a/._b.jpg"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    assert [str(file) for file in walk(root)] == [str(root / "a/b.jpg"), str(root / "c.jpg")]
    assert [str(file) for file in match("memory://walk/set/*/*.jpg")] == [str(root / "a/b.jpg")]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("set [v2]/*.tar", ["set [v2]/0.tar"]),
        ("set [v2]/**/*.tar", ["set [v2]/0.tar", "set [v2]/x/1.tar"]),
        ("set */*/?.tar", ["set [v2]/x/1.tar"]),
        ("set [v2]/[0-9].tar", ["set [v2]/0.tar"]),
        ("set [v2]/**.tar", ["set [v2]/0.tar"]),
        ("nowhere/*.tar", []),
    ],
)
def test_a_pattern_may_begin_with_a_folder_with_brackets(tmp_path: Path, pattern: str, found: list[str]) -> None:
    touch(tmp_path, "set [v2]/0.tar", "set [v2]/x/1.tar", "set [v2]/0.txt")
    (tmp_path / "set [v2]" / "self").symlink_to(tmp_path)
    assert names(match(f"{tmp_path}/{pattern}"), tmp_path) == found


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("sub%20dir/a%20b.jpg", "'sub dir/a b.jpg', which differs in percent-encoding"),
        ("images\\c.jpg", "'images/c.jpg', which differs in backslashes"),
        ("images/C.JPG", "'images/c.jpg', which differs in letter case"),
        ("Images/c.jpg", "'images/c.jpg', which differs in letter case"),
        ("images/c.jpg ", "'images/c.jpg', which differs in surrounding spaces"),
        ("images/c.png", "'images/c.jpg', which differs in suffix"),
        ("images/c", "'images/c.jpg', which differs in suffix"),
        ("images/Übung é.jpg", f"'images/{DECOMPOSED}', which differs in Unicode form (NFC or NFD)"),
        ("..\\media\\upload\\top.JPG", "'top.jpg', which differs in folder and backslashes and letter case"),
        ("/home/annotator/set/top.jpg", "'top.jpg', which differs in folder"),
        ("images", "it is a folder"),
        ("Images", "'images', which differs in letter case"),
    ],
)
def test_the_near_miss_of_a_missing_file_is_named(tmp_path: Path, name: str, hint: str) -> None:
    root = touch(tmp_path, "sub dir/a b.jpg", "images/c.jpg", f"images/{DECOMPOSED}", "top.jpg")
    with pytest.raises(RecordError) as caught:
        find_file(name, [root])
    assert caught.value.kind == "no such file"
    assert str(caught.value).startswith(f"no such file: {name!r}") and str(caught.value).endswith(hint)
    assert name.startswith("/") or f"in {tmp_path}" in str(caught.value)


def test_a_missing_file_without_a_near_miss_says_where_it_was_searched(tmp_path: Path) -> None:
    folders = [UPath(tmp_path / name) for name in "abcde"]
    assert describe_missing("x.jpg", folders) == f"'x.jpg' in {', '.join(map(str, folders[:3]))}, 2 more folders"


def test_a_file_in_two_folders_is_ambiguous_unless_it_is_the_same(tmp_path: Path) -> None:
    train, val = touch(tmp_path / "train", "1.jpg"), touch(tmp_path / "val", "1.jpg")
    (tmp_path / "link").symlink_to(tmp_path / "train")
    with pytest.raises(RecordError, match="ambiguous name"):
        find_file("1.jpg", [train, val])
    assert find_file("1.jpg", [train, UPath(tmp_path / "link")]) == train / "1.jpg"
    assert find_file(str(val / "1.jpg"), [train, val]) == val / "1.jpg"
