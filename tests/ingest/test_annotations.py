"""Annotation files as tools write them, read without their images: which boxes an image gets, and which are refused."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from components.ingest import boxes
from components.ingest.columns import ColumnsConfig
from components.ingest.image_access import ImageAccess
from components.ingest.pair_builder import PairBuilder
from components.ingest.quarantine import Quarantine
from components.ingest.sandboxed_decoder import DecodedImage
from components.ingest.sources import open_reader
from vlmflow.errors import DataError, RecordError

SIZE = (100, 80)  # of every image
BOX = [10, 10, 40, 30]


def put(root: Path, files: dict[str, Any]) -> Path:
    """Write files; an image may be empty, because it is not decoded here."""
    for name, content in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        data = content if isinstance(content, bytes | str) else json.dumps(content)
        file.write_bytes(data if isinstance(data, bytes) else data.encode())
    return root


def read(
    source: str, root: Path, files: dict[str, Any], size: tuple[int, int] = SIZE, names: dict[str, str] | None = None
) -> tuple[dict[str, list[str]], list[str], list[dict[str, Any]]]:
    """Return the phrases or texts of each image, the reasons of the quarantine, and the rows."""
    reader = open_reader(source, str(put(root, files)), "")
    columns = reader.columns(ColumnsConfig(boxes="boxes"))
    decoded = [DecodedImage(encoded=b"", size=size, original_size=size)]
    with Quarantine(root) as quarantine:
        builder = PairBuilder(
            columns, quarantine, ImageAccess((), refuse_outside=True), licence="", holdout=0, seed=0, names=names
        )
        rows = [row for record in reader.records() for row in builder.rows(record, record.error or decoded)]
    reasons = [json.loads(line)["reason"] for line in quarantine.path.read_text().splitlines()]
    found = {row["source"].partition("/")[2]: [one["phrase"] for one in row["regions"]] for row in rows}
    texts = {row["source"].partition("/")[2]: [one["text"] for one in row["lines"]] for row in rows}
    return (texts if source in ("sroie", "funsd") else found), reasons, rows


def corners(row: dict[str, Any]) -> list[list[float]]:
    return [[round(one[corner], 2) for corner in ("x0", "y0", "x1", "y1")] for one in row["regions"]]


# ------------------------------------------------------------------------------------------- folders and file names

DOG, CAT = "0 .5 .5 .4 .4\n", "1 .5 .5 .4 .4\n"
NAMES = {"data.yaml": "names: [dog, cat]\n"}


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        ({"images/none/1.jpg": "", "images/dogs/1.jpg": "", "labels/dogs/1.txt": DOG},
         {"images/dogs/1.jpg": ["dog"], "images/none/1.jpg": []}),
        ({"train/images/1.jpg": "", "valid/images/1.jpg": "", "valid/labels/1.txt": CAT},
         {"train/images/1.jpg": [], "valid/images/1.jpg": ["cat"]}),
        ({"images/1.jpg": "", "images/1.png": "", "labels/1.txt": CAT},
         {"images/1.jpg": ["cat"], "images/1.png": ["cat"]}),
        ({"a/images/images/1.jpg": "", "a/images/labels/1.txt": DOG}, {"a/images/images/1.jpg": ["dog"]}),
        ({"obj_train_data/1.jpg": "", "obj_train_data/1.txt": DOG}, {"obj_train_data/1.jpg": ["dog"]}),
        ({"1.JPG": "", "labels/1.txt": DOG}, {"1.JPG": ["dog"]}),
        ({"train_images/1.jfif": "", "train_labels/1.TXT": DOG}, {"train_images/1.jfif": ["dog"]}),
        ({"JPEGImages/1.jpg": "", "labels/1.txt": DOG, "labels/._1.txt": b"\0\5\x16\7\xff"},
         {"JPEGImages/1.jpg": ["dog"]}),
    ],
)  # fmt: skip
def test_labels_belong_to_the_image_in_the_corresponding_folder(
    tmp_path: Path, labels: dict[str, str], found: dict[str, list[str]]
) -> None:
    assert read("yolo", tmp_path / "set", NAMES | labels)[:2] == (found, [])


@pytest.mark.parametrize(
    ("files", "reasons"),
    [
        ({"images/1.jpg": "", "labels/1.txt": DOG, "images/1.txt": CAT},
         ["ambiguous annotation: images/1.jpg has 2 annotation files: images/1.txt and labels/1.txt"]),
        ({"images/1.jpg": "", "1.jpg": "", "labels/1.txt": DOG},
         ["ambiguous annotation: labels/1.txt belongs to 1.jpg and images/1.jpg"] * 2),
        ({"images/a/1.jpg": "", "labels/a/1.txt": DOG, "images/b/2.jpg": "", "labels/c/2.txt": DOG},
         ["no such file: no image for labels/c/2.txt; images/b/2.jpg has other folders"]),
        ({"images/a.jpg": "", "labels/a.txt": DOG, "images/B.jpg": "", "labels/b.txt": DOG},
         ["no such file: no image for labels/b.txt; images/B.jpg has another spelling"]),
    ],
)  # fmt: skip
def test_ambiguous_and_unmatched_labels_are_refused(tmp_path: Path, files: dict[str, str], reasons: list[str]) -> None:
    assert read("yolo", tmp_path / "set", NAMES | files)[1] == reasons


def test_labels_none_of_which_fits_an_image_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none of its 1 .* labels/1.txt; images/train/1.jpg has other folders"):
        read("yolo", tmp_path, NAMES | {"images/train/1.jpg": "", "labels/1.txt": DOG})


def xml(*objects: str, size: tuple[int, int] = (0, 0)) -> str:
    return f"<annotation><size><width>{size[0]}</width><height>{size[1]}</height></size>{''.join(objects)}</annotation>"


def thing(name: str = "<name>kite</name>", box: tuple[float, ...] = (11, 11, 50, 40)) -> str:
    sides = "".join(f"<{key}>{v}</{key}>" for key, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    return f"<object>{name}<bndbox>{sides}</bndbox></object>"


def test_voc_folders_and_lists_belong_to_their_set(tmp_path: Path) -> None:
    boat = xml(thing("<name>boat</name>"))
    files = {"07/JPEGImages/1.jpg": "", "07/Annotations/1.xml": xml(thing()), "07/ImageSets/Main/train.txt": "1\n",
             "12/JPEGImages/1.jpg": "", "12/Annotations/1.xml": boat, "12/ImageSets/Main/val.txt": "1.jpg\n",
             "12/ImageSets/Main/train.txt": "1\n", "12/JPEGImages/2.jpg": ""}  # fmt: skip
    found, reasons, rows = read("voc", tmp_path / "set", files)
    assert found == {"07/JPEGImages/1.jpg": ["kite"], "12/JPEGImages/1.jpg": ["boat"]}
    assert [row["split"] for row in rows] == ["train", "test"]
    assert reasons == ["no annotation: no annotation file for 12/JPEGImages/2.jpg"]


def test_sroie_folders(tmp_path: Path) -> None:
    line = "10,10,50,10,50,30,10,30,TOTAL\n"
    files = {"ch4_training_images/img_1.jpg": "", "ch4_training_localization_transcription_gt/gt_img_1.txt": line,
             "img/a.jpg": "", "box/a.txt": line, "entities/a.txt": '{"total": "9.30"}'}  # fmt: skip
    assert read("sroie", tmp_path / "set", files)[:2] == (
        {"ch4_training_images/img_1.jpg": ["TOTAL"], "img/a.jpg": ["TOTAL"]}, [],
    )  # fmt: skip
    with pytest.raises(DataError, match=r"entities/a.txt has no boxes"):
        read("sroie", tmp_path / "facts", {"img/a.jpg": "", "entities/a.txt": "{}"})


# ------------------------------------------------------------------------------------------------------------- boxes


@pytest.mark.parametrize(
    ("table", "line", "outcome"),
    [
        ("kpt_shape: [2, 2]", "0 .5 .5 .2 .2 .45 .45 .55 .45", [40, 32, 60, 48]),
        ("kpt_shape: [2, 3]", "0 .5 .5 .2 .2 .45 .45 1 .55 .45 1", [40, 32, 60, 48]),
        ("kpt_shape: [2, 3]", "0 .5 .5 .2 .2", "invalid box: 1.txt:1: 4 numbers, expected 4 of the box and 6"),
        ("", "0 .1 .1 .3 .1 .3 .4", [10, 8, 30, 32]),
        ("", "1.0 .5 .5 .2 .2   \r", [40, 32, 60, 48]),
        ("", "0 .5 .5 .2 .2 .9", "invalid box: 1.txt:1: 5 numbers"),
        ("", "0 .5 .5 -.2 .2", "empty box: 1.txt:1"),
        ("", "0 50 40 20 16", "outside the image: 1.txt:1"),
        ("", "7 .5 .5 .2 .2", "no phrase: 1.txt:1: class '7' is not among the 2 classes"),
        ("", "-1 .5 .5 .2 .2", "no phrase: 1.txt:1"),
        ("", "\n\n0 .5 .5 .2 \xff", "not text: 1.txt:3"),
    ],
)
def test_yolo_lines(tmp_path: Path, table: str, line: str, outcome: Any) -> None:
    files = {"data.yaml": f"names: [dog, cat]\n{table}\n", "images/1.jpg": "", "labels/1.txt": line.encode("latin-1")}
    _, reasons, (row,) = read("yolo", tmp_path, files)
    if isinstance(outcome, str):
        assert corners(row) == [] and len(reasons) == 1 and reasons[0].startswith(outcome)
    else:
        assert corners(row) == [outcome] and reasons == []


def test_one_bad_byte_loses_one_label(tmp_path: Path) -> None:
    label = b"0 .5 .5 .2 .2\n0 .5 .5 .2 \xff\n1 .5 .5 .2 .2\n"
    found, reasons, _ = read("yolo", tmp_path, NAMES | {"1.jpg": "", "1.txt": label})
    assert found == {"1.jpg": ["dog", "cat"]} and reasons[0].startswith("not text: 1.txt:2")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"data.yaml": "names: kite\nnc: 1"}, "names is 'kite'"),
        ({"data.yaml": "names: [kite, no]"}, "class 1 is False; write it in quotes"),
        ({"data.yaml": "names: {0: kite, 0: boat}"}, "key '0' occurs twice"),
        ({"data.yaml": "names: [kite]\nnc: 2"}, "nc is 2, but names has 1"),
        ({"data.yaml": "names: [kite]\nkpt_shape: 17"}, "kpt_shape is 17"),
        ({"data.yaml": "names: [风筝]".encode("gbk")}, "data.yaml:1: not text"),
        ({"data.yaml": "names: [kite]", "more.yaml": "names: [boat]"}, "different class names in data.yaml, more.yaml"),
        ({"data.yaml": "train: x"}, "no class names found"),
    ],
)
def test_class_names_of_yolo_are_checked(tmp_path: Path, files: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError) as caught:
        read("yolo", tmp_path, {"1.jpg": "", "1.txt": DOG} | files)
    assert said in str(caught.value)


def test_labelimgs_class_list_is_beside_its_labels(tmp_path: Path) -> None:
    assert read(
        "yolo", tmp_path / "set", {"images/1.jpg": "", "labels/1.txt": CAT, "labels/classes.txt": "dog\ncat\n"}
    )[:2] == ({"images/1.jpg": ["cat"]}, [])


@pytest.mark.parametrize(
    ("element", "reason"),
    [
        (thing(""), "no phrase: 1.xml, object 1"),
        (thing(box=(50, 11, 11, 40)), "empty box: 1.xml, object 1"),
        (thing(box=(0, 0, 1, 1)), "empty box: 1.xml, object 1: corners ['0', '0', '1', '1']: no number is above 1"),
        (thing("<name>kite</name><name>boat</name>"), "malformed row: 1.xml, object 1: 2 elements name"),
        ("<object><name>kite</name><polygon/></object>", "no box: 1.xml, object 1: no bndbox among name, polygon"),
        ("<object><name>kite</name><robndbox><cx>1</cx></robndbox></object>", "no box: 1.xml, object 1"),
    ],
)  # fmt: skip
def test_voc_objects_that_are_no_upright_box(tmp_path: Path, element: str, reason: str) -> None:
    found, reasons, _ = read("voc", tmp_path / "set", {"1.jpg": "", "1.xml": xml(element, thing())})
    assert found == {"1.jpg": ["kite"]}
    assert len(reasons) == 1 and reasons[0].startswith(reason)


@pytest.mark.parametrize(
    ("line", "outcome"),
    [
        ("10,10,50,10,50,30,10,30,TOTAL 9.30, CASH", "TOTAL 9.30, CASH"),
        ("10,10,50,10,50,30,10,30,12,50", "12,50"),
        ("10,10,50,10,50,30,10,30,1,234,567", "1,234,567"),
        ("10,10,50,10,50,30,10,30,A\u2028\x0cB", "A\u2028\x0cB"),
        ("38 43 90 70 \"To 'x'\"", "To 'x'"),
        ("10,10,50,10,90,12,90,30,50,32,10,30,30,31,20,20,CURVED", "invalid box: a.txt:2: 16 numbers before the text"),
        ("10,10,50,10,50,30,10,30", "no text: a.txt:2"),
        ("10,10,50,10,50,30,10,30,###", "illegible: a.txt:2"),
        ("10,10,5,5,TEXT", "empty box: a.txt:2"),
        ("10,10,50,10,50,30,10,30,\x81\xff", "not text: a.txt:2"),
    ],
)
def test_sroie_lines(tmp_path: Path, line: str, outcome: str) -> None:
    data = line.encode("latin-1") if "\x81" in line else line.encode()
    text = b"1,1,9,1,9,9,1,9,\xa35\n" + data + b"\n1,1,9,1,9,9,1,9,\xc3\xa9\n"  # each line in its own encoding
    found, reasons, _ = read("sroie", tmp_path / "set", {"img/a.jpg": "", "box/a.txt": text})
    kept = [] if ": a.txt:2" in outcome else [outcome]
    assert found == {"img/a.jpg": ["£5", *kept, "é"]}
    assert [reason.startswith(outcome) for reason in reasons] == ([True] if not kept else [])


def test_a_word_with_turned_corners_is_not_hidden_in_its_line(tmp_path: Path) -> None:
    words = [{"text": "A", "box": [5, 5, 20, 20]}, {"text": "B", "box": [60, 5, 30, 20]}, {"text": "C", "box": None}]
    form = json.dumps({"form": [{"words": words}]})
    found, reasons, _ = read("funsd", tmp_path / "set", {"images/1.png": "", "annotations/1.json": form})
    assert found == {"images/1.png": ["A"]} and [reason[:11] for reason in reasons] == ["invalid box"] * 2
    twice = '{"form": [], "form": [{"text": "A", "box": [5, 5, 20, 20]}]}'
    assert "twice" in read("funsd", tmp_path / "b", {"images/1.png": "", "annotations/1.json": twice})[1][0]


@pytest.mark.parametrize(
    ("source", "name"), [("yolo", "a.txt"), ("voc", "a.xml"), ("sroie", "a.txt"), ("funsd", "a.json")]
)
def test_an_unreadable_annotation_file_loses_its_image(tmp_path: Path, source: str, name: str) -> None:
    put(tmp_path, NAMES | {"a.jpg": ""})
    (tmp_path / name).symlink_to("/nowhere/file")
    found, reasons, _ = read(source, tmp_path, {})
    assert found == {} and len(reasons) == 1 and reasons[0].startswith("unreadable file")


# -------------------------------------------------------------------------------------------------- COCO and RefCOCO


def coco(annotations: list[dict[str, Any]] | str, **changes: Any) -> dict[str, Any]:
    document = {"images": [{"id": 1, "file_name": "1.jpg"}, {"id": 2, "file_name": "2.jpg"}],
                "categories": [{"id": 1, "name": "kite"}, {"id": 90, "name": "boat"}],
                "annotations": annotations, **changes}  # fmt: skip
    return {"1.jpg": "", "2.jpg": "", "a.json": document}


def box(number: int = 1, image: Any = 1, **more: Any) -> dict[str, Any]:
    return {"id": number, "image_id": image, "category_id": 1, "bbox": BOX} | more


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"category_id": 7}, "unknown category: annotation 1: category_id 7 is not in `categories`"),
        ({"category_id": [1]}, "malformed row: annotation 1: category_id is [1]"),
        ({"bbox": []}, "invalid box: annotation 1"),
        ({"bbox": [10, 10, -5, 20]}, "empty box: annotation 1"),
        ({"bbox": [0.1, 0.1, 1, 1]}, "empty box: annotation 1: [0.1, 0.1, 1.0, 1.0]: no number is above 1"),
        ({"bbox": [10, 10, 40, 30, 0.9]}, "invalid box: annotation 1: 5 numbers"),
        ({"bbox": [10, 10, 40, 30, 0.9, 1]}, "invalid box: annotation 1: 6 numbers"),
        ({"bbox_mode": 0}, "invalid box: annotation 1: bbox_mode is 0"),
        ({"attributes": {"rotation": 30.0}}, "rotated box: annotation 1: rotation is 30.0"),
        ({"iscrowd": 1}, "crowd: annotation 1"),
    ],
)
def test_coco_annotations_that_are_no_region(tmp_path: Path, entry: dict[str, Any], reason: str) -> None:
    found, reasons, _ = read("coco", tmp_path / "set", coco([box() | entry, box(2, category_id=90)]))
    assert found == {"1.jpg": ["boat"], "2.jpg": []}
    assert len(reasons) == 1 and reasons[0].startswith(reason)


def test_a_coco_annotation_with_only_a_polygon_is_refused(tmp_path: Path) -> None:
    polygon = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[10, 10, 50, 10, 50, 40]]}
    found, reasons, _ = read("coco", tmp_path / "set", coco([polygon]))
    assert found["1.jpg"] == [] and reasons == [
        "no box: annotation 1: no bbox among id, image_id, category_id, segmentation"
    ]


def test_the_caption_of_a_coco_box_is_its_phrase(tmp_path: Path) -> None:
    found, _, (row, *_) = read("coco", tmp_path / "set", coco([box(caption="a kite over a hill")]))
    assert found["1.jpg"] == ["a kite over a hill"] and row["regions"][0]["category"] == "kite"


def test_coco_ids_that_occur_twice_are_refused(tmp_path: Path) -> None:
    images = [{"id": 1, "file_name": "1.jpg"}, {"id": 1, "file_name": "2.jpg"}]
    found, reasons, _ = read("coco", tmp_path / "a", coco([box()], images=images))
    assert found == {} and reasons == ["ambiguous id: 2 entries of `images` have the id 1"] * 2
    found, reasons, _ = read("coco", tmp_path / "b", coco([box(5), box(5, 2), box(6, 2)]))
    assert found == {"1.jpg": [], "2.jpg": ["kite"]}
    assert [reason.partition(";")[0] for reason in reasons] == [
        "ambiguous id: annotation 5: its id occurs more than once in `annotations`"
    ] * 2
    with pytest.raises(DataError, match="category 1 is 'kite' and 'boat'"):
        read("coco", tmp_path / "c", coco([box()], categories=[{"id": 1, "name": n} for n in ("kite", "boat")]))


def test_a_key_that_occurs_twice_refuses_its_annotation(tmp_path: Path) -> None:
    files = coco([])
    files["a.json"] = json.dumps(files["a.json"] | {"annotations": [box(1), box(2)]}).replace(
        '"id": 2, "image_id": 1, "category_id": 1,', '"id": 2, "image_id": 1, "category_id": 90, "category_id": 1,'
    )
    found, reasons, _ = read("coco", tmp_path / "set", files)
    assert found["1.jpg"] == ["kite"] and len(reasons) == 1 and "'category_id' occurs twice" in reasons[0]


@pytest.mark.parametrize("number", ["1", 1.0])
def test_an_id_may_be_written_as_text_or_with_decimals(tmp_path: Path, number: Any) -> None:
    images = [{"id": number, "file_name": "1.jpg"}]
    assert read("coco", tmp_path / "set", coco([box(image=1)], images=images))[:2] == ({"1.jpg": ["kite"]}, [])


@pytest.mark.parametrize(
    ("index", "image", "split"),
    [
        ("annotations/instances_val2017.json", "1.jpg", "test"),
        ("annotations/instances_train2017.json", "1.jpg", "train"),
        ("annotations/train.json", "val2017/1.jpg", "test"),
        ("annotations/train_val.json", "test_images/1.jpg", "test"),
        ("annotations/image_info_test-dev2017.json", "1.jpg", "test"),
    ],
)
def test_the_split_of_coco_is_in_its_names(tmp_path: Path, index: str, image: str, split: str) -> None:
    document = coco([box()], images=[{"id": 1, "file_name": image}])["a.json"]
    assert read("coco", tmp_path, {index: document})[2][0]["split"] == split


def test_the_images_of_a_coco_split_are_not_those_of_another(tmp_path: Path) -> None:
    from components.ingest.coco import image_folders
    from components.ingest.filesystem import open_path

    put(tmp_path, {f"{name}/1.jpg": "" for name in ("train2017", "val2017", "images")})
    root = open_path(str(tmp_path))
    found = [folder.name for folder in image_folders(root, root / "annotations" / "instances_val2017.json")]
    assert found == [tmp_path.name, "images", "val2017", "annotations"][:3]


def test_the_refs_of_refcoco_must_fit_their_annotations(tmp_path: Path) -> None:
    document = coco([box(5, 1), box(6, 1), box(6, 2), box(7, 2)])["a.json"]
    document["images"].append({"id": 3, "file_name": "3.jpg"})
    refs = [{"ann_id": ann, "image_id": image, "category_id": 1, "split": "train", "sentences": [{"sent": f"{ann}"}]}
            for ann, image in ((5, 1), (6, 1), (7, 1), (7, 2), (99, 2), (5, 8))]  # fmt: skip
    files = {"refs(unc).p": pickle.dumps(refs, 2), "instances.json": document, "images/1.jpg": ""}
    found, reasons, _ = read("refcoco", tmp_path / "set", files)
    assert found == {"1.jpg": ["5"], "2.jpg": ["7"]}
    assert reasons == [
        "ambiguous id: several entries of `annotations` have the id 6",
        "no box: annotation 7 is on image 2, not on 1",
        "no box: no annotation 99",
        "no image: image 8 is not in instances.json",
    ]


# -------------------------------------------------------------------------------------------------- stated image size


@pytest.mark.parametrize(
    ("stated", "outcome"),
    [
        ((100, 80), [10, 10, 50, 40]),
        ((200, 160), [5, 5, 25, 20]),
        ((201, 160), [4.98, 5, 24.88, 20]),
        ((None, 80), [10, 10, 50, 40]),
        ((0, 0), [10, 10, 50, 40]),
        ((80, 100), "another image size: annotation 1: the source states 80×100, the image is 100×80 (the EXIF"),
        ((640, 480), "another image size: annotation 1: the source states 640×480, the image is 100×80"),
    ],
)
def test_the_stated_size_of_an_image_is_compared(tmp_path: Path, stated: tuple[Any, Any], outcome: Any) -> None:
    images = [{"id": 1, "file_name": "1.jpg", "width": stated[0], "height": stated[1]}]
    _, reasons, (row,) = read("coco", tmp_path / "set", coco([box()], images=images))
    assert reasons[0].startswith(outcome) if isinstance(outcome, str) else corners(row) == [outcome]
    voc = {"1.jpg": "", "1.xml": xml(thing(), size=tuple(side or 0 for side in stated))}  # type: ignore[arg-type]
    _, _, (row,) = read("voc", tmp_path / "voc", voc)
    assert corners(row) == ([] if isinstance(outcome, str) else [outcome])


STUDIO = {"x": 10, "y": 10, "width": 30, "height": 20, "rotation": 0, "original_width": 200, "original_height": 160}


@pytest.mark.parametrize(
    ("item", "outcome"),
    [
        (STUDIO | {"rectanglelabels": ["kite"]}, [10, 8, 40, 24]),
        ({"type": "rectanglelabels", "original_width": 100, "original_height": 80,
          "value": {"x": 10, "y": 10, "width": 30, "height": 20, "rectanglelabels": ["kite"]}}, [10, 8, 40, 24]),
        ({"points": [[10, 10], [40, 10], [40, 30]], "polygonlabels": ["kite"]}, [10, 8, 40, 24]),
        (STUDIO | {"rectanglelabels": ["kite"], "rotation": 15}, "rotated box"),
        (STUDIO | {"rectanglelabels": ["kite"], "image_rotation": 90}, "rotated box"),
        (STUDIO | {"rectanglelabels": ["kite"], "original_width": 160, "original_height": 200}, "another image size"),
        ({"x": 10, "y": 10, "width": 2, "keypointlabels": ["kite"]}, "invalid box"),
        ({"x": 10, "y": 10, "radiusX": 2, "radiusY": 2, "ellipselabels": ["kite"]}, "invalid box"),
        ({"label": "kite", "box": [10, 8, 40, 24], "angle": 0.3}, "rotated box"),
        ({"label": "kite", "points": [[10, 8, 2], [40, 24, 1]]}, "invalid box"),
        ({"label": "kite", "points": [[10, 8], [40, 24]], "shape_type": "circle"}, "invalid box"),
        ({"label": "kite", "points": [[10, 8], [40, 24]], "shape_type": "rectangle"}, [10, 8, 40, 24]),
        ({"label": "kite", "box": [10, 8, 40, 24], "angle": "front"}, [10, 8, 40, 24]),
        ({"label": "kite", "bbox": [10, 8, 40, 24, 0.9, 0]}, "invalid box"),
        ({"label": "kite", "bbox": [0, 0, 1, 1]}, "empty box"),
        ({"label": "kite", "polygon": [0, 0, 1, 0, 1, 1, 0, 1]}, "empty box"),
        ({"label": "kite", "polygon": [10, 8, 40, 8, 40, 24]}, [10, 8, 40, 24]),
    ],
)  # fmt: skip
def test_results_of_label_studio_and_rotated_boxes(item: dict[str, Any], outcome: Any) -> None:
    (parsed,) = boxes.parse_boxes([item])
    assert boxes.text_field(parsed, boxes.PHRASE_KEYS) == "kite"
    if isinstance(outcome, str):
        with pytest.raises(RecordError) as caught:
            boxes.parse_box(parsed, *SIZE, "xyxy")
        assert caught.value.kind == outcome
    else:
        assert list(boxes.parse_box(parsed, *SIZE, "xyxy")[0].values()) == pytest.approx(outcome)


def test_lists_of_unequal_length_are_refused() -> None:
    with pytest.raises(RecordError, match="2 boxes, but 1 'category'"):
        boxes.parse_boxes({"bbox": [BOX, BOX], "category": ["kite"]})


def test_names_rename_labels(tmp_path: Path) -> None:
    names = {"kite": "red kite"}
    assert read("coco", tmp_path / "set", coco([box(), box(2, category_id=90)]), names=names)[0]["1.jpg"] == [
        "red kite", "boat",
    ]  # fmt: skip


def test_a_class_number_without_a_name_is_refused(tmp_path: Path) -> None:
    rows = [{"image": "1.jpg", "caption": "x", "boxes": {"bbox": [BOX, BOX], "category": [7, 8.0]}}]
    found, reasons, _ = read("folder", tmp_path, {"1.jpg": "", "i.jsonl": json.dumps(rows[0])}, names={"8": "kite"})
    assert found == {"1.jpg": ["kite"]} and reasons == ["no phrase: class 7 has no name; set ingest.names: {'7': …}"]


def test_the_size_in_an_index_is_compared(tmp_path: Path) -> None:
    row = {"image": "1.jpg", "caption": "x", "width": 200, "height": 160, "boxes": [{"label": "kite", "box": BOX}]}
    lines = [row | {"height": height} for height in (160, 200)]
    _, reasons, rows = read("folder", tmp_path, {"1.jpg": "", "i.jsonl": "\n".join(map(json.dumps, lines))})
    assert [corners(row) for row in rows] == [[[5, 5, 20, 15]], []]
    assert [reason.partition(":")[0] for reason in reasons] == ["another image size"]
