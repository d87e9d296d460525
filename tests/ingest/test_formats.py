"""Each source in its own format, written here as its tools write it."""

import io
import json
import pickle
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.ingest.test_ingestion import encoded, refused, run
from vlmflow.artifacts.dataset import uid

Members = list[tuple[str, bytes]]


def tar(path: Path, members: Members) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


def sample(key: str, seed: int, caption: str | None = None, **facts: Any) -> Members:
    """One sample as img2dataset writes it: the picture, the caption, and the facts."""
    members = [(f"{key}.jpg", encoded("JPEG", seed=seed))]
    if caption is not None:
        members.append((f"{key}.txt", caption.encode()))
    return [
        *members,
        (f"{key}.json", json.dumps({"caption": caption, "key": key, "status": "success", **facts}).encode()),
    ]


def corners(region: dict[str, Any]) -> tuple[float, ...]:
    return tuple(region[corner] for corner in ("x0", "y0", "x1", "y1"))


def test_webdataset(tmp_path: Path) -> None:
    root = tmp_path / "laion"
    tar(
        root / "00000.tar",
        [*sample("000000000", 0, "a cat", uid="ab", license="CC0"), *sample("000000001", 1, "a dog")],
    )
    only_json = ("000010001.json", json.dumps({"caption": "in the JSON", "key": "000010001"}).encode())
    tar(root / "00001.tar", [
        *sample("000010000", 2, None),
        ("000010001.png", encoded(seed=3)), only_json,
        ("000010002.txt", b"no image"),
        ("000010003.jpg", b"<html>"), ("000010003.txt", b"no picture either"),
        ("000010004.jpg", encoded("JPEG", seed=4)), ("000010004.txt", "\xe9".encode("latin-1")),
        ("000010005.jpg", encoded("JPEG", seed=5)), ("000010005.json", b"{"),
    ])  # fmt: skip
    written, rows, entries = run(root, tmp_path / "out", source="webdataset", columns={"licence": "license"})
    assert {row["source"]: (row["caption"], row["licence"]) for row in rows} == {
        "laion/000000000.jpg": ("a cat", "CC0"), "laion/000000001.jpg": ("a dog", ""),
        "laion/000010001.png": ("in the JSON", ""),
    }  # fmt: skip
    assert rows[0]["uid"] == uid(encoded("JPEG", seed=0), "a cat")
    assert {entry["place"]: entry["reason"].partition(":")[0] for entry in entries} == {
        "00001.tar:000010000": "no caption", "00001.tar:000010002": "no image",
        "00001.tar:000010003": "not an image", "00001.tar:000010004": "not text",
        "00001.tar:000010005": "malformed row",
    }  # fmt: skip
    assert written.card.notes["rows_read"] == 8


def test_uids_do_not_depend_on_how_shards_are_grouped(tmp_path: Path) -> None:
    samples = [sample(f"{i:09d}", i, f"caption {i}") for i in range(12)]
    tar(tmp_path / "one" / "00000.tar", [member for one in samples for member in one])
    for number in range(3):
        tar(tmp_path / "three" / f"{number}.tar", [member for one in samples[number::3][::-1] for member in one])
    made = [run(tmp_path / name, tmp_path / f"out-{name}", source="webdataset")[1] for name in ("one", "three")]
    assert {row["uid"]: row["split"] for row in made[0]} == {row["uid"]: row["split"] for row in made[1]}
    assert [row["uid"] for row in made[0]] != [row["uid"] for row in made[1]]


def test_a_truncated_shard_loses_only_its_missing_samples(tmp_path: Path) -> None:
    whole = tar(tmp_path / "set" / "00000.tar", [*sample("000000000", 0, "first"), *sample("000000001", 1, "second")])
    whole.write_bytes(whole.read_bytes()[:6000])
    tar(tmp_path / "set" / "00001.tar", sample("000010000", 2, "third"))
    (tmp_path / "set" / "00002.tar").write_bytes(b"<html>")
    _, rows, entries = run(tmp_path / "set", tmp_path / "out", source="webdataset")
    assert [row["caption"] for row in rows] == ["first", "third"]
    assert [(entry["place"], entry["reason"].partition(":")[0]) for entry in entries] == [
        ("00000.tar", "damaged shard"), ("00002.tar", "damaged shard"),
    ]  # fmt: skip


def test_the_parquet_beside_a_shard_is_joined_and_its_missing_keys_are_reported(tmp_path: Path) -> None:
    tar(tmp_path / "set" / "00000.tar", sample("000000000", 0, "in the tar") + sample("000000001", 1))
    status = ["success", "success", "failed_to_download"]
    table = {"key": ["000000000", "000000001", "000000002"], "status": status, "caption": ["x", "beside it", "y"],
             "part": ["train", "test", "train"], "error_message": [None, None, "404"]}  # fmt: skip
    pq.write_table(pa.table(table), tmp_path / "set" / "00000.parquet")
    _, rows, entries = run(tmp_path / "set", tmp_path / "out", source="webdataset", columns={"split": "part"})
    assert [(row["caption"], row["split"]) for row in rows] == [("in the tar", "train"), ("beside it", "test")]
    assert [(entry["place"], entry["reason"]) for entry in entries] == [
        ("00000.tar:000000002", "not downloaded: failed_to_download: 404")
    ]


def test_datacomps_metadata_is_joined_by_uid(tmp_path: Path) -> None:
    uids = [f"{i:032x}" for i in (7, 3, 5)]
    tar(
        tmp_path / "pool" / "00000000.tar", [m for i, u in enumerate(uids) for m in sample(f"{i:09d}", i, "web", uid=u)]
    )
    metadata = {"uid": sorted(uids)[:2], "text": ["three", "five"], "clip_l14_similarity_score": [0.1, 0.2]}
    (tmp_path / "pool" / "metadata").mkdir()
    pq.write_table(pa.table(metadata), tmp_path / "pool" / "metadata" / "0.parquet")
    columns = {"caption": "text"}
    section = {"source": "webdataset", "index": "metadata/*.parquet", "columns": columns}
    _, rows, entries = run(tmp_path / "pool", tmp_path / "out", **section)
    assert [row["caption"] for row in rows] == ["three", "five"]
    assert [entry["place"] for entry in entries] == ["00000000.tar:000000000"]


def coco(root: Path) -> dict[str, Any]:
    (root / "val2017").mkdir(parents=True)
    for i in range(3):
        (root / "val2017" / f"{i:012d}.jpg").write_bytes(encoded("JPEG", seed=i))
    return {
        "info": {}, "licenses": [], "categories": [{"id": 18, "name": "dog", "supercategory": "animal"}],
        "images": [{"id": i, "file_name": f"{i:012d}.jpg", "width": 40, "height": 30} for i in range(4)],
    }  # fmt: skip


def test_coco(tmp_path: Path) -> None:
    document = coco(tmp_path / "coco")
    boxes = [(0, [1.5, 2, 10, 20]), (0, [5, 5, 9, 9]), (1, [30, 2, 60, 20])]
    document["annotations"] = [
        {"id": i, "image_id": image, "category_id": 18, "bbox": box, "iscrowd": 0, "area": 1, "segmentation": [[1, 2]]}
        for i, (image, box) in enumerate(boxes)
    ] + [{"id": 9, "image_id": 1, "category_id": 18, "bbox": [1, 1, 9, 9], "iscrowd": 1},
         {"id": 10, "image_id": 77, "category_id": 18, "bbox": [1, 1, 9, 9], "iscrowd": 0}]  # fmt: skip
    index = tmp_path / "coco" / "annotations" / "instances_val2017.json"
    index.parent.mkdir()
    index.write_text(json.dumps(document))
    written, rows, entries = run(tmp_path / "coco", tmp_path / "out", source="coco")
    assert [[(r["phrase"], corners(r)) for r in row["regions"]] for row in rows] == [
        [("dog", (1.5, 2, 11.5, 22)), ("dog", (5, 5, 14, 14))], [], [],
    ]  # fmt: skip
    assert rows[0]["caption"] == "dog"
    reasons = [(entry["what"], entry["reason"].partition(":")[0]) for entry in entries]
    assert sorted(reasons) == [
        ("region", "crowd"), ("region", "outside the image"), ("row", "no image"), ("row", "no such file"),
    ]  # fmt: skip
    assert written.card.notes["rows_read"] == 5
    document["annotations"] = [
        {"id": 1, "image_id": 2, "caption": "a dog"},
        {"id": 2, "image_id": 2, "caption": "dogs"},
    ]
    (index.parent / "captions_val2017.json").write_text(json.dumps(document))
    section = {"source": "coco", "index": "annotations/captions_val2017.json"}
    _, rows, _ = run(tmp_path / "coco", tmp_path / "captions", **section)
    assert [row["caption"] for row in rows if row["caption"]] == ["a dog", "dogs"]
    assert "expected one *.json" in refused(tmp_path / "coco", tmp_path / "o", source="coco")
    index.write_text(json.dumps(document)[:-9])
    assert "not valid JSON" in refused(index, tmp_path / "o", source="coco")
    index.write_text('{"annotations": [7]}')
    assert "`annotations` has no image_id" in refused(index, tmp_path / "o", source="coco")


def test_refcoco(tmp_path: Path) -> None:
    document = coco(tmp_path)
    document["annotations"] = [{"id": 5, "image_id": 0, "category_id": 18, "bbox": [1, 2, 10, 20]},
                               {"id": 6, "image_id": 1, "category_id": 18, "bbox": [3, 4, 5, 6]}]  # fmt: skip
    said = [(5, 0, "train", ["left dog", "big dog"]), (6, 1, "testA", ["pup"]), (8, 1, "testA", ["nobody"])]
    refs = [
        {"ref_id": n, "ann_id": ann, "category_id": 18, "image_id": image, "split": split, "file_name": "x_1.jpg",
         "sentences": [{"sent": one, "raw": one, "sent_id": 0, "tokens": one.split()} for one in sents]}
        for n, (ann, image, split, sents) in enumerate(said)
    ]  # fmt: skip
    root = tmp_path / "refcoco"
    root.mkdir()
    (tmp_path / "val2017").rename(root / "images")
    (root / "instances.json").write_text(json.dumps(document))
    (root / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=0))
    _, rows, entries = run(root, tmp_path / "out", source="refcoco")
    assert [(row["split"], row["caption"]) for row in rows] == [("train", "left dog, big dog"), ("test", "pup")]
    assert corners(rows[0]["regions"][1]) == (1, 2, 11, 22) and rows[0]["regions"][1]["category"] == "dog"
    assert [entry["reason"] for entry in entries] == ["no box: no annotation 8"]
    (root / "refs(unc).p").write_bytes(pickle.dumps(Path("/")))
    assert "the file calls pathlib" in refused(root, tmp_path / "o", source="refcoco")


def test_voc(tmp_path: Path) -> None:
    root = tmp_path / "VOC2012"
    for folder in ("Annotations", "JPEGImages", "SegmentationClass", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for i in range(4):
        (root / "JPEGImages" / f"2007_{i}.jpg").write_bytes(encoded("JPEG", seed=i))
    (root / "SegmentationClass" / "2007_0.png").write_bytes(encoded())
    (root / "ImageSets" / "Main" / "train.txt").write_text("2007_0\n")
    (root / "ImageSets" / "Main" / "val.txt").write_text("2007_1\n")
    (root / "ImageSets" / "Main" / "dog_train.txt").write_text("2007_1 -1\n")
    xml = ("<annotation><filename>other.jpg</filename><size><width>40</width><height>30</height><depth>3</depth></size>"
           "<object><name>dog</name><difficult>0</difficult><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>40</xmax>"
           "<ymax>30</ymax></bndbox><part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2"
           "</ymax></bndbox></part></object><object><name>cat</name></object></annotation>")  # fmt: skip
    for i, text in {0: xml, 1: "<annotation/>", 2: "<annotation>", 9: xml}.items():
        (root / "Annotations" / f"2007_{i}.xml").write_text(text)
    _, rows, entries = run(root, tmp_path / "out", source="voc", holdout=0)
    assert [(row["source"], row["split"]) for row in rows] == [
        ("VOC2012/JPEGImages/2007_0.jpg", "train"), ("VOC2012/JPEGImages/2007_1.jpg", "test"),
    ]  # fmt: skip
    assert [(r["phrase"], corners(r)) for r in rows[0]["regions"]] == [("dog", (0, 0, 40, 30))]
    assert sorted((entry["what"], entry["reason"].partition(":")[0]) for entry in entries) == [
        ("region", "no box"), ("row", "malformed row"), ("row", "no annotation"), ("row", "no such file"),
    ]  # fmt: skip


@pytest.mark.parametrize("layout", ["images/{}/a{}.png labels/{}/a{}.txt", "{}/images/a{}.png {}/labels/a{}.txt"])
@pytest.mark.parametrize("names", ["names: {0: dog, 1: cat}", "names: [dog, cat]"])
def test_yolo(tmp_path: Path, layout: str, names: str) -> None:
    root, (picture, label) = tmp_path / "set", layout.split()
    lines = ["0 0.5 0.5 0.5 1.0\n1 0.1 0.1 0.3 0.1 0.3 0.4\n\n7 0.5 0.5 0.1 0.1\n", "1 0.5 0.5 0.5\n", None]
    for i, (split, text) in enumerate(zip(("train", "val", "train"), lines, strict=True)):
        for name, content in ((picture, encoded(seed=i)), (label, (text or "").encode())):
            place = root / name.format(split, i % 2)  # the same stem in both splits
            if name == label and text is None:
                place = root / name.format(split, 5)  # no picture is named like it
            if name == picture and text is None:
                place = root / name.format(split, 3)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
    (root / "data.yaml").write_text(f"path: ../x\ntrain: images/train\n{names}\n")
    _, rows, entries = run(root, tmp_path / "out", source="yolo")
    found = {row["split"] + row["caption"]: [corners(r) for r in row["regions"]] for row in rows}
    assert found == {"traincat, dog": [(10, 0, 30, 30), (4, 3, 12, 12)], "train": [], "test": []}
    assert sorted((entry["what"], entry["reason"].partition(":")[0]) for entry in entries) == [
        ("region", "invalid box"), ("region", "no phrase"), ("row", "no such file"),
    ]  # fmt: skip
    (root / "data.yaml").write_text("train: images\n")
    assert "no class names found" in refused(root, tmp_path / "o", source="yolo")


def test_sroie(tmp_path: Path) -> None:
    texts = {
        "train/X0": b"1,2,20,2,20,9,1,9,TOTAL: 9,30\n1,12,20,12,20,19,1,19,###\n1,2,3\n",
        "train/X1": '\ufeff1, 2, 20, 9, "PAID"\r\n'.encode(),
        "test/X2": "1,2,20,2,20,9,1,9,£5\n".encode("cp1252"),
    }
    for name, text in texts.items():
        part, stem = name.split("/")
        for folder, file, content in (
            ("img", f"{stem}.jpg", encoded("JPEG", seed=len(text))),
            ("box", f"gt_{stem}.txt", text),
        ):
            (tmp_path / "sroie" / part / folder).mkdir(parents=True, exist_ok=True)
            (tmp_path / "sroie" / part / folder / file).write_bytes(content)
    _, rows, entries = run(tmp_path / "sroie", tmp_path / "out", source="sroie")
    lines = {row["source"]: (row["split"], [(line["text"], corners(line)) for line in row["lines"]]) for row in rows}
    assert lines == {
        "sroie/train/img/X0.jpg": ("train", [("TOTAL: 9,30", (1, 2, 20, 9))]),
        "sroie/train/img/X1.jpg": ("train", [("PAID", (1, 2, 20, 9))]),
        "sroie/test/img/X2.jpg": ("test", [("£5", (1, 2, 20, 9))]),
    }
    assert sorted(entry["reason"].partition(":")[0] for entry in entries) == ["illegible", "no text"]


def test_funsd(tmp_path: Path) -> None:
    words = [([1, 1, 9, 5], "Due"), ([11, 1, 20, 5], "by:"), ([1, 8, 9, 12], "now")]
    form = {"form": [
        {"id": 0, "label": "question", "box": [1, 1, 20, 12], "text": "Due by: now", "linking": [],
         "words": [{"box": box, "text": text} for box, text in words]},
        {"id": 1, "label": "other", "box": [1, 20, 5, 25], "text": "", "words": [{"box": [1, 20, 5, 25], "text": ""}]},
    ]}  # fmt: skip
    for i, part in enumerate(("training_data", "testing_data")):
        for folder, file, content in (
            ("images", "f.png", encoded(seed=i)),
            ("annotations", "f.json", json.dumps(form).encode()),
        ):
            (tmp_path / "funsd" / part / folder).mkdir(parents=True)
            (tmp_path / "funsd" / part / folder / file).write_bytes(content)
    (tmp_path / "funsd" / "training_data" / "images" / "g.png").write_bytes(encoded())
    (tmp_path / "funsd" / "training_data" / "annotations" / "g.json").write_text('{"from": []}')
    _, rows, entries = run(tmp_path / "funsd", tmp_path / "out", source="funsd")
    assert sorted(row["split"] for row in rows) == ["test", "train"]
    assert [(line["text"], corners(line)) for line in rows[0]["lines"]] == [
        ("Due by:", (1, 1, 20, 5)), ("now", (1, 8, 9, 12)),
    ]  # fmt: skip
    assert [entry["reason"].partition(":")[0] for entry in entries] == ["malformed row"]


def test_hugging_face_datasets(tmp_path: Path) -> None:
    from datasets import ClassLabel, Dataset, Features, Image, List, Value

    objects = {"bbox": List(List(Value("float32"))), "category": List(ClassLabel(names=["dog", "cat"]))}
    features = Features(
        {"image": Image(), "caption": Value("string"), "objects": objects, "label": ClassLabel(names=["x", "y"])}
    )
    row = {"caption": "a dog", "objects": {"bbox": [[1, 2, 10, 20]], "category": [1]}, "label": 1}
    splits = {
        name: Dataset.from_list([{"image": {"bytes": encoded(seed=i), "path": None}, **row}], features=features)
        for i, name in enumerate(("train", "validation"))
    }
    for name, part in splits.items():
        part.to_parquet(tmp_path / "hub" / f"{name}-00000-of-00001.parquet")
    columns = {"boxes": "objects", "box_format": "xywh", "label": "label"}
    _, rows, _ = run(tmp_path / "hub", tmp_path / "out", source="datasets", columns=columns)
    assert [row["split"] for row in rows] == ["train", "test"]
    assert [row["image"]["bytes"] for row in rows] == [encoded(seed=0), encoded(seed=1)]
    assert rows[0]["label"] == "y" and rows[0]["regions"][0]["phrase"] == "cat"
    assert corners(rows[0]["regions"][0]) == (1, 2, 11, 22)
    (tmp_path / "bare").mkdir()
    assert "cannot load it" in refused(tmp_path / "bare", tmp_path / "o", source="datasets")


def test_a_local_image_folder_of_hugging_face_datasets(tmp_path: Path) -> None:
    for i, name in enumerate(("train/dog/0.png", "train/cat/1.png")):
        (tmp_path / "set" / name).parent.mkdir(parents=True)
        (tmp_path / "set" / name).write_bytes(encoded(seed=i))
    columns = {"caption": "label", "label": "label"}
    _, rows, _ = run(tmp_path / "set", tmp_path / "out", source="datasets", columns=columns, outside_files="refuse")
    found = {row["source"]: (row["caption"], row["image"]["bytes"]) for row in rows}
    assert found == {
        "set/train/dog/0.png": ("dog", encoded(seed=0)), "set/train/cat/1.png": ("cat", encoded(seed=1)),
    }  # fmt: skip
