import csv
import io
import json
import struct
import zlib
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from components.ingest.captions import parse_captions
from components.ingest.config import IngestConfig
from components.ingest.ingestion import ingest
from vlmflow.artifacts.dataset import Dataset, uid
from vlmflow.config.recipes import load
from vlmflow.errors import DataError, RecipeError, RecordError

SHARED = Path(__file__).parents[3] / "shared" / "data"


def encoded(
    form: str = "PNG", size: tuple[int, int] = (40, 30), seed: int = 0, mode: str = "RGB", **options: Any
) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(buffer, form, **options)
    return buffer.getvalue()


def folder(root: Path, rows: list[dict[str, Any]], name: str = "index.jsonl", pictures: int = 4) -> Path:
    (root / "images").mkdir(parents=True, exist_ok=True)
    for i in range(pictures):
        (root / "images" / f"{i}.png").write_bytes(encoded(seed=i))
    (root / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return root


def run(root: Path, out: Path, **section: Any) -> tuple[Dataset, list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the dataset, its rows and the entries of the quarantine."""
    values = {"source": "folder", "path": str(root), **section}
    written = ingest(load(IngestConfig, {"ingest": values}, "ingest"), out)
    entries = [json.loads(line) for line in (out / "quarantine.jsonl").read_text(encoding="utf-8").splitlines()]
    return written, list(written.rows()), entries


def refused(root: Path, out: Path, **section: Any) -> str:
    with pytest.raises(DataError) as caught:
        run(root, out, **section)
    assert not (out / "card.json").exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_becomes_pairs(tmp_path: Path) -> None:
    root = folder(tmp_path / "set", [{"image": "images/0.png", "caption": "a cat", "kind": 3}])
    written, rows, entries = run(root, tmp_path / "out", columns={"label": "kind"}, licence="CC0", holdout=0)
    picture = encoded(seed=0)
    assert rows == [
        {
            "uid": uid(picture, "a cat"), "image": {"bytes": picture, "path": None}, "caption": "a cat", "width": 40,
            "height": 30, "source": "set/images/0.png", "licence": "CC0", "split": "train", "label": "3",
            "regions": [], "lines": [],
        }
    ]  # fmt: skip
    assert entries == []
    assert written.card.notes["splits"] == {"train": 1, "test": 0}


@pytest.mark.parametrize(
    ("form", "options"),
    [("JPEG", {}), ("PNG", {}), ("WEBP", {}), ("GIF", {}), ("BMP", {}), ("TIFF", {}), ("PNG", {"mode": "RGBA"})],
)
def test_formats(tmp_path: Path, form: str, options: dict[str, Any]) -> None:
    root = folder(tmp_path / "set", [{"image": "a", "caption": "x"}])
    (root / "a").write_bytes(encoded(form, **options))
    _, rows, _ = run(root, tmp_path / "out")
    assert (rows[0]["width"], rows[0]["height"]) == (40, 30)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_width_and_height_are_of_the_upright_image(tmp_path: Path, form: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    root = folder(tmp_path / "set", [{"image": "a", "caption": "x"}])
    (root / "a").write_bytes(encoded(form, exif=exif))
    _, rows, _ = run(root, tmp_path / "out")
    assert (rows[0]["width"], rows[0]["height"]) == (30, 40)


def test_unusable_rows_go_to_the_quarantine_with_a_reason(tmp_path: Path) -> None:
    names = ["text", "empty", "noise", "bomb", "gone.png", "images", "images/0.png", "http://x.org/a.png", None, 5]
    root = folder(tmp_path / "set", [{"image": name, "caption": "x"} for name in names])
    (root / "text").write_text("<html>not found</html>")
    (root / "empty").write_bytes(b"")
    (root / "noise").write_bytes(np.random.default_rng(1).bytes(800))
    head = b"IHDR" + struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
    (root / "bomb").write_bytes(bomb + encoded()[33:])
    with (root / "index.jsonl").open("a") as file:
        file.write('{"image": "images/1.png", "caption": "cut o\n7\n"text"\n')
        file.write('{"image": "images/2.png", "caption": "\\ud83d"}\n')

    written, rows, entries = run(root, tmp_path / "out")

    assert [row["source"] for row in rows] == ["set/images/0.png"]
    reasons = {entry["place"].partition(":")[2]: entry["reason"].partition(":")[0] for entry in entries}
    assert reasons == {
        "1": "not an image", "2": "not an image", "3": "not an image", "4": "too many pixels", "5": "no such file",
        "6": "no such file", "8": "no such file", "9": "no image", "10": "no image", "11": "malformed row",
        "12": "malformed row", "13": "malformed row", "14": "not text",
    }  # fmt: skip
    counts = written.card.notes["quarantined"]["rows"]
    assert written.card.notes["rows_read"] == len(rows) + sum(counts.values()) == 14


def test_an_image_truncated_after_its_header_goes_to_the_quarantine(tmp_path: Path) -> None:
    root = folder(tmp_path / "set", [{"image": name, "caption": "x"} for name in ("a.jpg", "a.png", "images/0.png")])
    (root / "a.jpg").write_bytes(encoded("JPEG")[:700])
    (root / "a.png").write_bytes(encoded("PNG")[:700])
    _, rows, entries = run(root, tmp_path / "out")
    assert [row["source"] for row in rows] == ["set/images/0.png"]
    assert [entry["image"] for entry in entries] == ["a.jpg", "a.png"]
    assert all("truncated" in entry["reason"] for entry in entries)


def test_the_split_depends_on_the_image_alone(tmp_path: Path) -> None:
    rows = [{"image": f"images/{i}.png", "caption": [f"one {i}", f"two {i}"]} for i in range(40)]
    folder(tmp_path / "a", rows, pictures=40)
    folder(tmp_path / "b", rows[::-1], pictures=40)
    (_, first, _), (_, second, _) = (run(tmp_path / name, tmp_path / f"out-{name}", holdout=0.3) for name in "ab")
    assert {row["uid"]: row["split"] for row in first} == {row["uid"]: row["split"] for row in second}
    sides = {row["image"]["bytes"]: set() for row in first}
    for row in first:
        sides[row["image"]["bytes"]].add(row["split"])
    assert all(len(side) == 1 for side in sides.values())
    assert {row["split"] for row in first} == {"train", "test"}
    _, other, _ = run(tmp_path / "a", tmp_path / "out-c", holdout=0.3, seed=1)
    assert [row["split"] for row in other] != [row["split"] for row in first]


def test_the_same_source_gives_the_same_dataset(tmp_path: Path) -> None:
    root = folder(tmp_path / "set", [{"image": f"images/{i}.png", "caption": f"{i}"} for i in range(4)])
    assert run(root, tmp_path / "a")[0].hash == run(root, tmp_path / "b")[0].hash


def test_a_split_column(tmp_path: Path) -> None:
    values = ["train", "Test", "VAL", "validation", " train "]
    rows = [{"image": "images/0.png", "caption": str(i), "part": part} for i, part in enumerate(values)]
    _, pairs, _ = run(folder(tmp_path / "set", rows), tmp_path / "out", columns={"split": "part"})
    assert [row["split"] for row in pairs] == ["train", "test", "test", "test", "train"]
    rows[2]["part"] = "spare"
    _, pairs, entries = run(folder(tmp_path / "spare", rows), tmp_path / "out2", columns={"split": "part"})
    assert len(pairs) == 4 and [entry["place"] for entry in entries] == ["index.jsonl:3"]
    assert entries[0]["reason"].startswith("unknown split: 'spare'; use one of train")
    message = refused(folder(tmp_path / "bad", rows[::2]), tmp_path / "out3", columns={"split": "part"})
    assert "1 rows have an unknown split" in message and "use the names train, " in message


def test_csv_with_boxes_as_json_text(tmp_path: Path) -> None:
    root = folder(tmp_path / "set", [], name="ignored.txt")
    with (root / "index.csv").open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file)
        writer.writerow(["", "image", "caption", "boxes"])
        writer.writerow(["0", "images/0.png", 'He said "hi",\nand left', '[{"label": "hand", "bbox": [1, 2, 9, 9]}]'])
        writer.writerow(["1", "images/1.png", "none", ""])
        writer.writerow(["2", "images/1.png", "broken", "[[1, 2"])
        writer.writerow(["3", "images/1.png", "too", "", "long"])
    _, rows, entries = run(root, tmp_path / "out", columns={"boxes": "boxes"})
    assert [row["caption"] for row in rows] == ['He said "hi",\nand left', "none", "broken"]
    assert [len(row["regions"]) for row in rows] == [1, 0, 0]
    assert [(entry["what"], entry["reason"].partition(":")[0]) for entry in entries] == [
        ("region", "invalid box"), ("row", "malformed row"),
    ]  # fmt: skip


def test_an_invalid_box_does_not_remove_its_row(tmp_path: Path) -> None:
    boxes = [[0, 0, 20, 20], [-1, 5, 41, 20], [0, 0, 90, 20], [5, 5, 5, 9], [0.1, 0.1, 0.5, 0.5], ["a", 1, 2, 3], None]
    row = {
        "image": "images/0.png",
        "caption": "c",
        "boxes": [{"label": f"b{i}", "box": box} for i, box in enumerate(boxes)],
    }
    written, rows, entries = run(folder(tmp_path / "set", [row]), tmp_path / "out", columns={"boxes": "boxes"})
    regions = [(r["phrase"], r["x0"], r["y0"], r["x1"], r["y1"]) for r in rows[0]["regions"]]
    assert regions == [("b0", 0, 0, 20, 20), ("b1", 0, 5, 40, 20)]
    assert written.card.notes["clipped_boxes"] == 1
    assert written.card.notes["quarantined"]["regions"] == {"outside the image": 1, "empty box": 2, "invalid box": 2}
    assert {uid for entry in entries for uid in entry["uids"]} == {rows[0]["uid"]}


def test_captions_are_made_from_annotations_if_there_are_none(tmp_path: Path) -> None:
    boxes = [
        {"label": "dog", "box": [20, 2, 30, 9]},
        {"label": "cat", "box": [1, 3, 9, 9]},
        {"label": "dog", "box": [1, 20, 9, 29]},
    ]
    lines = [{"text": "TOTAL", "box": [1, 1, 20, 1, 20, 9, 1, 9]}, {"text": "9.50", "box": [22, 1, 30, 9]}]
    root = folder(
        tmp_path / "set", [{"image": "images/0.png", "boxes": boxes}, {"image": "images/1.png", "lines": lines}]
    )
    written, rows, _ = run(root, tmp_path / "out", columns={"boxes": "boxes", "lines": "lines"})
    assert [row["caption"] for row in rows] == ["cat, dog", "TOTAL 9.50"]
    assert rows[1]["lines"][0] == {"text": "TOTAL", "x0": 1.0, "y0": 1.0, "x1": 20.0, "y1": 9.0}
    assert written.card.notes["captions"] == "made from boxes or lines"


def test_null_captions_stay_and_are_empty(tmp_path: Path) -> None:
    rows = [
        {"image": "images/0.png", "caption": None},
        {"image": "images/1.png", "text": "y"},
        {"image": "images/2.png", "caption": "x"},
        {"image": "images/3.png", "caption": float("nan")},
        {"image": "images/3.png", "caption": 3},
    ]
    _, pairs, entries = run(folder(tmp_path / "set", rows), tmp_path / "out")
    assert [row["caption"] for row in pairs] == ["", "x", ""]
    assert [(entry["place"], entry["reason"]) for entry in entries] == [
        ("index.jsonl:2", "no caption: no 'caption' among image, text"), ("index.jsonl:5", "not text: 3"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "captions"),
    [
        (None, [""]), (float("nan"), [""]), ([], [""]), ("a kite", ["a kite"]), (["a", ""], ["a", ""]),
        ('["a \\"red\\" kite", "b"]', ['a "red" kite', "b"]), ("['a kite', \"b's\"]", ["a kite", "b's"]),
        ("['twas the night]", ["['twas the night]"]), ("[a kite]", ["[a kite]"]), ("[1, 2]", ["[1, 2]"]),
        ('["a", 2]', ['["a", 2]']), (Decimal("1.50"), ["1.50"]),
    ],
)  # fmt: skip
def test_captions(value: Any, captions: list[str]) -> None:
    assert parse_captions(value) == captions


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (5, "not text: 5"), (1.5, "not text: 1.5"), (True, "not text: True"), ({"en": "a"}, "not text"),
        (["a", None], "caption 2 of 2 is None"), (["a", ["b"]], "caption 2 of 2"), (b"a", "not text"),
        ("a\0b", "character 1 is NUL"), ("the <image> tag", "image markers"),
        ("a\ud83d", "not valid Unicode"), ("x" * (2**24 + 1), "too many bytes"),
    ],
)  # fmt: skip
def test_what_is_no_caption_is_refused(value: Any, said: str) -> None:
    with pytest.raises(RecordError) as caught:
        parse_captions(value)
    assert said in str(caught.value)


def test_too_many_unusable_rows_stop_the_run(tmp_path: Path) -> None:
    from components.ingest.ingestion import _check_lost
    from components.ingest.quarantine import Quarantine

    def check(lost: int, records: int, most: float, kind: str = "no such file") -> None:
        with Quarantine(tmp_path) as quarantine:
            for i in range(lost):
                quarantine.add("rows", f"index.csv:{i + 2}", "", RecordError(kind, f"'{i}.jpg'"))
        _check_lost(IngestConfig(path="set", max_quarantined=most), quarantine, records)

    for lost, records, most in ((20, 100, 0.2), (20, 30, 0.2), (200, 1000, 0.2), (0, 5, 0.0), (9, 9, 1.0)):
        check(lost, records, most)
    check(100, 100, 0.2, "not downloaded")
    for lost, records, most in ((21, 100, 0.2), (21, 30, 0.2), (201, 1000, 0.2), (1, 5, 0.0)):
        with pytest.raises(DataError) as caught:
            check(lost, records, most)
        assert f"{lost} of {records} rows are unusable" in str(caught.value)
        assert "'no such file' (first index.csv:2: '0.jpg')" in str(caught.value)


def test_limit_counts_pairs(tmp_path: Path) -> None:
    rows = [{"image": f"images/{i}.png", "caption": ["a", "b"]} for i in range(4)]
    written, _, _ = run(folder(tmp_path / "set", rows), tmp_path / "out", limit=3)
    assert len(written) == 3


def test_an_index_beside_its_pictures_or_above_them(tmp_path: Path) -> None:
    root = folder(tmp_path / "set", [{"image": "images/0.png", "caption": "x"}], name="top.jsonl")
    (root / "notes").mkdir()
    (root / "notes" / "deep.jsonl").write_text('{"image": "images/1.png", "caption": "y"}\n')
    _, rows, _ = run(root, tmp_path / "out", index="notes/deep.jsonl")
    assert rows[0]["source"] == "set/images/1.png"


def test_errors_name_what_is_missing(tmp_path: Path) -> None:
    root = folder(tmp_path / "set", [{"image": "images/0.png", "captoin": "x", "alt": "y"}])
    assert "nearest is 'captoin'" in refused(root, tmp_path / "o")
    assert "all: image, captoin, alt" in refused(root, tmp_path / "o", columns={"caption": "alt", "boxes": "regions"})
    assert "no such folder" in refused(tmp_path / "nowhere", tmp_path / "o")
    assert "'a.csv'" in refused(root, tmp_path / "o", index="a.csv")
    (root / "more.csv").write_text("image,caption\n")
    assert "index.jsonl, more.csv" in refused(root, tmp_path / "o")
    (tmp_path / "bare").mkdir()
    assert "none of *.jsonl" in refused(tmp_path / "bare", tmp_path / "o")
    (tmp_path / "bare" / "0.txt").write_text("a kite")
    assert "set ingest.source: captions" in refused(tmp_path / "bare", tmp_path / "o")


def test_a_source_without_usable_rows_is_an_error(tmp_path: Path) -> None:
    missing = folder(tmp_path / "set", [{"image": "gone.png", "caption": "x"}] * 3)
    message = refused(missing, tmp_path / "o")
    assert "none of its 3 rows is usable: 3 rows 'no such file' (first index.jsonl:1: 'gone.png'" in message
    (missing / "index.jsonl").write_text("not\njson\n")
    assert "none of its 2 rows" in refused(missing, tmp_path / "o")
    assert "no rows" in refused(folder(tmp_path / "empty", []), tmp_path / "o")
    (tmp_path / "empty" / "index.jsonl").unlink()
    (tmp_path / "empty" / "index.csv").write_text("image,caption\n")
    assert "no rows" in refused(tmp_path / "empty", tmp_path / "o")
    (missing / "index.jsonl").write_text('[{"image": "images/0.png", "caption": "x"}]')
    assert "JSON array" in refused(missing, tmp_path / "o")
    (missing / "index.jsonl").rename(missing / "index.json")
    assert len(run(missing, tmp_path / "array")[1]) == 1
    (missing / "index.json").write_text('[{"image": "images/0.png", "capt')
    assert "not valid JSON" in refused(missing, tmp_path / "o")
    (missing / "index.json").rename(missing / "index.jsonl")
    (missing / "index.jsonl").write_bytes('{"image": "images/0.png", "caption": "é"}'.encode("latin-1"))
    assert "byte 38 (0xe9) is not UTF-8" in refused(missing, tmp_path / "o")


def test_names_rename_the_labels_of_the_source(tmp_path: Path) -> None:
    row = {"image": "images/0.png", "kind": "WBC", "boxes": [{"label": "WBC", "box": [1, 2, 9, 8]}]}
    root = folder(tmp_path / "set", [row])
    columns = {"caption": "", "boxes": "boxes", "label": "kind"}
    _, rows, _ = run(root, tmp_path / "out", columns=columns, names={"WBC": "white blood cell"})
    assert [rows[0]["caption"], rows[0]["label"], rows[0]["regions"][0]["category"]] == ["white blood cell"] * 3
    for section in ({"columns": columns}, {"source": "yolo"}):
        (root / "data.yaml").write_text("names: [WBC]")
        message = refused(root, tmp_path / "o", names={"WCB": "white blood cell"}, **section)
        assert "no label 'WCB'; the nearest is 'WBC'" in message


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"source": "folder"}, "needs a path"),
        ({"source": "folder", "path": "x", "names": {"a": " "}}, "'a' has no words"),
        ({"names": {"a": "b"}}, "has no labels to rename"),
        ({"holdout": 1.0}, "holdout"),
        ({"limit": 0}, "limit"),
        ({"columns": {"caption": ""}}, "columns: caption is empty"),
        ({"columns": {"captions": "x"}}, "nearest is 'caption'"),
        ({"columns": {"box_format": "yxyx"}}, "yxyx"),
    ],
)
def test_invalid_settings_are_refused_on_load(values: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        load(IngestConfig, {"ingest": values}, "ingest")


def test_parquet_images_may_be_bytes_structs_or_names(tmp_path: Path) -> None:
    picture = encoded(seed=9)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.png").write_bytes(picture)
    for name, images in {
        "bytes": [picture, None],
        "struct": [{"bytes": picture, "path": "a"}, {"bytes": None, "path": "a.png"}],
        "names": ["a.png", "b.png"],
    }.items():
        table = pa.table(
            {"image": images, "caption": ["x", "y"], "objects": [{"bbox": [[1, 2, 3, 4]], "category": [7]}] * 2}
        )
        pq.write_table(table, tmp_path / "set" / f"{name}.parquet")
    section = {"source": "parquet", "columns": {"boxes": "objects", "box_format": "xywh"}, "names": {"7": "kite"}}
    for path in (tmp_path / "set", tmp_path / "set" / "*.parquet"):
        _, rows, entries = run(path, tmp_path / f"out-{path.name[0]}", **section)
        assert [row["image"]["bytes"] for row in rows] == [picture] * 4
        region = rows[0]["regions"][0]
        assert [region[key] for key in ("phrase", "x0", "y0", "x1", "y1")] == ["kite", 1, 2, 4, 6]
        assert [entry["place"] for entry in entries] == ["bytes.parquet:2", "names.parquet:2"]


def test_a_dataset_can_be_ingested_again(tmp_path: Path) -> None:
    row = {"image": "images/0.png", "caption": "c", "boxes": [{"phrase": "b", "category": "k", "box": [1, 2, 9, 8]}],
           "lines": [{"text": "t", "box": [1, 2, 9, 8]}]}  # fmt: skip
    first, rows, _ = run(folder(tmp_path / "set", [row]), tmp_path / "a", columns={"boxes": "boxes", "lines": "lines"})
    columns = {"boxes": "regions", "lines": "lines", "split": "split", "label": "label"}
    _, again, _ = run(tmp_path / "a", tmp_path / "b", source="parquet", columns=columns)
    assert [{**row, "source": ""} for row in again] == [{**row, "source": ""} for row in rows]
    assert len(first) == 1


def test_invalid_parquet(tmp_path: Path) -> None:
    assert "no parquet file" in refused(tmp_path, tmp_path / "o", source="parquet")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 but not really")
    assert "a.parquet" in refused(tmp_path, tmp_path / "o", source="parquet")


def test_scenes(tmp_path: Path) -> None:
    scenes = {"web": 12, "boxes": 3, "signs": 3, "test": 2}
    written = ingest(load(IngestConfig, {"seed": 1, "ingest": {"scenes": scenes}}, "ingest"), tmp_path / "a")
    assert written.card.notes["splits"]["train"] == 18
    assert written.card.notes["splits"]["test"] > 0
    again = ingest(load(IngestConfig, {"seed": 1, "ingest": {"scenes": scenes}}, "ingest"), tmp_path / "b")
    assert again.hash == written.hash
    with pytest.raises(DataError, match="no rows"):
        nothing = dict.fromkeys(scenes, 0)
        ingest(load(IngestConfig, {"ingest": {"scenes": nothing}}, "ingest"), tmp_path / "c")


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real data is not here")
@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("emoji", {"label": "category"}),
        ("textbooks", {"caption": "alt"}),
        ("cards", {"boxes": "boxes", "split": "part"}),
        ("receipts", {"lines": "lines"}),
        ("nlvr", {"caption": "sentence", "label": "label"}),
    ],
)
def test_real_data(tmp_path: Path, name: str, columns: dict[str, str]) -> None:
    _, rows, entries = run(SHARED / name, tmp_path / "out", columns=columns, limit=30)
    assert len(rows) == 30 and entries == []
    assert all(row["caption"] for row in rows) or name == "textbooks"
    assert all(row["regions"] for row in rows) or name != "cards"
    assert all(row["lines"] for row in rows) or name != "receipts"
