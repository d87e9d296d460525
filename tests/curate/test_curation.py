import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageFilter
from pydantic import ValidationError

from components.curate.config import CurateConfig, ScoreConfig
from components.curate.curation import curate
from vlmflow.artifacts import dataset
from vlmflow.artifacts.dataset import Dataset, uid
from vlmflow.artifacts.ledger import RULES, Ledger, history
from vlmflow.config.recipes import load
from vlmflow.errors import DataError, RecipeError

SHARED = Path(__file__).parents[3] / "shared" / "data"
BY_DEFAULT = frozenset(
    ["undecodable", "too_small", "aspect_ratio", "blank", "noise", "junk_text", "exact_duplicate", "in_test_set"]
    + ["near_duplicate"]
)
REGION = {"phrase": "a dot", "x0": 1.0, "y0": 1.0, "x1": 5.0, "y1": 5.0}


def make_image(seed: int, size: tuple[int, int] = (64, 64)) -> Image.Image:
    """Return 8 x 8 random patches, smoothly enlarged: a distinct image for each seed."""
    patches = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(patches).resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def pair(image: bytes, caption: str, **values: Any) -> dict[str, Any]:
    row = {"uid": uid(image, caption), "image": image, "caption": caption, "width": 64, "height": 64, "source": "test"}
    return {**row, "licence": "", "split": "train", "label": "", "regions": [], "lines": [], **values}


def run(root: Path, rows: list[dict[str, Any]], **section: Any) -> tuple[Dataset, list[dict[str, Any]], dict[str, Any]]:
    """Curate rows; return the curated dataset, the rows of the ledger and its summary."""
    dataset.write(root / "raw", "pairs", rows)
    raw, curated, ledger, funnel, scorer = (
        root / name for name in ("raw", "curated", "ledger", "funnel.html", "scorer")
    )
    curate(raw, curated, ledger, funnel, scorer, load(CurateConfig, {"curate": section}, "curate"))
    rows = pq.read_table(ledger / "ledger.parquet").to_pylist()
    return Dataset(curated), rows, json.loads((root / "ledger" / "summary.json").read_text(encoding="utf-8"))


def noisy() -> list[dict[str, Any]]:
    """Return ten good pairs, and two pairs that fail each default rule; `source` is the rule."""
    rows = [pair(encoded(make_image(i)), f"picture number {i} of ten", source="") for i in range(10)]
    test = encoded(make_image(100))
    rows.append(pair(test, "a picture to test on", split="test", source=""))
    white = np.random.default_rng(0).integers(0, 256, (2, 96, 96, 3), dtype=np.uint8)
    for i in range(2):
        whole = encoded(make_image(20 + i))
        rows += [
            pair(whole[: len(whole) // 2], f"cut off {i}", source="undecodable"),
            pair(encoded(make_image(30 + i, (9, 40))), f"thin {i} of all", source="too_small"),
            pair(encoded(make_image(40 + i, (20, 200))), f"a strip {i}", source="aspect_ratio"),
            pair(encoded(Image.new("RGB", (50, 50), (9, 99, 200 + i))), f"plain {i} blue", source="blank"),
            pair(encoded(Image.fromarray(white[i])), f"snow {i} on the screen", source="noise"),
            pair(encoded(make_image(50 + i)), ("IMG_0042.jpg", "click here")[i], source="junk_text"),
            pair(rows[i]["image"], rows[i]["caption"], source="exact_duplicate"),
            pair(encoded(make_image(100).resize((80 + i, 80))), f"seen again {i}", source="in_test_set"),
        ]
        copies = [encoded(make_image(60 + i)), encoded(make_image(60 + i), "JPEG", quality=60)]
        first, second = sorted((pair(copy, f"twice {i}") for copy in copies), key=lambda row: row["uid"])
        rows += [{**second, "source": "near_duplicate"}, {**first, "source": ""}]
    return rows


def test_each_default_rule_drops_exactly_its_pairs(tmp_path: Path) -> None:
    rows = noisy()
    curated, ledger, summary = run(tmp_path, rows)
    assert [entry["rule"] for entry in ledger] == [row["source"] for row in rows]
    assert [entry["row"] for entry in ledger] == list(range(len(rows)))
    assert summary["rows_in"] == len(rows) == summary["kept"] + sum(summary["dropped"].values())
    assert summary["dropped"] == {rule: 2 * (rule in BY_DEFAULT) for rule in RULES}
    assert summary["held_out_faults"] == {}
    good = [row for row in rows if not row["source"]]
    assert [(row["uid"], row["image"]["bytes"]) for row in curated.rows()] == [
        (row["uid"], row["image"]) for row in good
    ]
    assert curated.card.parents == [Dataset(tmp_path / "raw").hash]
    assert curated.card.notes["dropped"] == summary["dropped"]
    assert json.loads((tmp_path / "scorer" / "card.json").read_text()) == {"family": "none"}


def test_the_ledger_records_value_threshold_and_detail(tmp_path: Path) -> None:
    rows = noisy()
    ledger = {entry["row"]: entry for entry in run(tmp_path, rows)[1]}
    for number, row in enumerate(rows):
        entry, rule = ledger[number], row["source"]
        assert entry["verdict"] == ("dropped" if rule else "kept")
        if rule in ("too_small", "blank", "noise", "junk_text"):
            assert entry["value"] < entry["threshold"]
        elif rule in ("aspect_ratio", "near_duplicate", "in_test_set"):
            assert (entry["value"] > entry["threshold"]) == (rule == "aspect_ratio")
        if rule == "undecodable":
            assert "truncated" in entry["detail"]
        if rule == "too_small":
            assert (entry["value"], entry["threshold"]) == (9, 16)
        if rule in ("exact_duplicate", "near_duplicate", "in_test_set"):
            partner = next(r for r in rows if r["uid"] == entry["detail"] and not r["source"])
            assert partner["split"] == ("test" if rule == "in_test_set" else "train")


def test_each_optional_rule_drops_exactly_its_pairs(tmp_path: Path) -> None:
    sharp = Image.fromarray(
        np.kron(np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8), np.ones((24, 24, 1), np.uint8))
    )
    two = Image.new("RGB", (64, 64), (250, 200, 30))
    for x in range(0, 64, 16):
        two.paste((30, 30, 200), (x, 0, x + 8, 64))
    listed = tmp_path / "listed.txt"
    listed.write_text("nasty\n")
    photos = [encoded(sharp.rotate(90 * i)) for i in range(2)] + [
        encoded(sharp.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    ]
    rows = [
        pair(encoded(sharp.filter(ImageFilter.GaussianBlur(8))), "a blurred picture of patches", source="blurred"),
        pair(encoded(two), "yellow beside blue", source="low_entropy"),
        pair(encoded(sharp.convert("L")), "patches in grey", source="low_colorfulness"),
        pair(photos[0], "a picture with far more words in it than anybody would want", source="caption_too_long"),
        pair(photos[0], "ein Bild mit bunten Flächen", source="language"),
        pair(photos[0], "colourful patches", source="low_complexity"),
        pair(photos[0], "a nasty picture of patches", source="blocklist"),
        pair(photos[0], "patches of colour, phone 555-867-5309", source="pii"),
        *sorted((pair(photo, "patches of colour", source="") for photo in photos), key=lambda row: row["uid"]),
    ]
    rows[-1]["source"] = "caption_duplicate"
    section = {
        "min_sharpness": 100.0, "min_entropy": 2.0, "min_colorfulness": 10.0, "max_words": 9, "languages": ["en"],
        "min_relations": 1, "blocklist": [str(listed)], "pii": "drop", "max_images_per_caption": 2,
    }  # fmt: skip
    _, ledger, _ = run(tmp_path, rows, **section)
    assert [entry["rule"] for entry in ledger] == [row["source"] for row in rows]
    assert all(e["value"] is not None and e["threshold"] is not None for e in ledger if e["rule"])
    page = (tmp_path / "funnel.html").read_text(encoding="utf-8")
    assert all(f"<h2>{row['source']} <small>1 dropped" in page for row in rows if row["source"])


def test_pii_is_removed_from_kept_captions_and_noted_in_the_ledger(tmp_path: Path) -> None:
    rows = [
        pair(encoded(make_image(1)), "a boat for sale 555-867-5309"),
        pair(encoded(make_image(2)), "a boat on a lake"),
    ]
    for mode, kept, detail in (
        ("remove", "a boat for sale", "phone removed"),
        ("flag", rows[0]["caption"], "phone in the caption"),
        ("ignore", rows[0]["caption"], ""),
    ):
        curated, ledger, _ = run(tmp_path / mode, rows, pii=mode)
        assert [row["caption"] for row in curated.rows()] == [kept, "a boat on a lake"]
        assert [entry["detail"] for entry in ledger] == [detail, ""]


def test_history_explains_the_verdict_on_a_pair(tmp_path: Path) -> None:
    rows = noisy()
    run(tmp_path, rows)
    by_rule = {row["source"]: row["uid"] for row in reversed(rows)}
    small = history(tmp_path / "ledger", by_rule["too_small"])
    assert len(small) == 1 and "dropped by too_small (short side in pixels): 9, threshold 16" in small[0]
    near = history(tmp_path / "ledger" / "ledger.parquet", by_rule["near_duplicate"])
    assert len(near) == 2 and near[1].startswith("  because of ")
    assert "kept; passed all" in history(tmp_path / "ledger", by_rule[""][:12])[0]
    assert len(history(tmp_path / "ledger", rows[0]["uid"])) == 3  # two rows have this uid: one kept, one dropped
    with pytest.raises(DataError, match="no such pair"):
        history(tmp_path / "ledger", "no-uid")
    with pytest.raises(DataError, match=r"\d+ pairs in .* have this prefix"):
        history(tmp_path / "ledger", "")
    with pytest.raises(DataError, match="no ledger found"):
        history(tmp_path / "nowhere", "a")


def test_the_verdicts_do_not_depend_on_the_order_of_rows(tmp_path: Path) -> None:
    rows = noisy() + [pair(encoded(make_image(60).resize((90 + i, 90))), f"thrice {i}") for i in range(5)]
    kept = sorted(row["uid"] for row in run(tmp_path / "a", rows)[0].rows())
    for seed in range(3):
        shuffled = [rows[i] for i in np.random.default_rng(seed).permutation(len(rows))]
        assert sorted(row["uid"] for row in run(tmp_path / str(seed), shuffled)[0].rows()) == kept


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        run(tmp_path / name, [*noisy(), pair(b"no picture", "a cat")])
    for file in ("ledger/ledger.parquet", "ledger/summary.json", "funnel.html", "curated/card.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize(
    "notes",
    [{"regions": [REGION]}, {"lines": [{"text": "x", "x0": 0.0, "y0": 0.0, "x1": 9.0, "y1": 9.0}]}, {"label": "dot"}],
)
@pytest.mark.parametrize("caption", ["", "IMG_1234.jpg"])
def test_an_annotated_image_is_kept_and_its_unusable_caption_is_cleared(
    tmp_path: Path, notes: dict, caption: str
) -> None:
    rows = [pair(encoded(make_image(1)), caption, **notes), pair(encoded(make_image(2)), "a good caption", **notes)]
    curated, ledger, summary = run(tmp_path, rows)
    assert [row["caption"] for row in curated.rows()] == ["", "a good caption"]
    assert [entry["verdict"] for entry in ledger] == ["kept", "kept"]
    assert ("file name" in ledger[0]["detail"]) == bool(caption)
    assert summary["captions_cleared"] == 1


def test_different_annotations_of_an_image_are_not_duplicates(tmp_path: Path) -> None:
    image = encoded(make_image(1))
    rows = [
        pair(image, "", regions=[REGION]),
        pair(image, "", regions=[{**REGION, "x0": 2.0}]),
        pair(image, "two dots here"),
    ]
    assert run(tmp_path, rows)[2]["kept"] == 3


def test_dedup_images(tmp_path: Path) -> None:
    image = encoded(make_image(1))
    rows = [pair(image, "a cat"), pair(image, "a dog"), pair(encoded(make_image(1), "JPEG"), "a cat")]
    assert run(tmp_path / "one", rows)[2]["kept"] == 1
    curated = run(tmp_path / "each", rows, dedup_images=False)[0]
    assert sorted(row["caption"] for row in curated.rows()) == ["a cat", "a dog"]
    assert run(tmp_path / "exact", rows, max_cell_difference=None)[2]["dropped"]["near_duplicate"] == 0


def test_a_copy_of_a_leaked_image_is_kept_if_it_does_not_leak_itself(tmp_path: Path) -> None:
    """Brightness +0, +12 and +24: neighbours are near duplicates, the first and the last are not."""
    base = np.asarray(make_image(1)) // 2
    test, between, away = (encoded(Image.fromarray((base + shift).astype(np.uint8))) for shift in (0, 12, 24))
    rows = [pair(test, "for tests", split="test"), pair(between, "brighter"), pair(away, "the brightest")]
    assert [entry["rule"] for entry in run(tmp_path, rows)[1]] == ["", "in_test_set", ""]


@pytest.mark.parametrize("section", [{"max_cell_difference": None}, {"max_cell_difference": 0, "phash_distance": 0}])
def test_a_training_image_with_the_pixels_of_a_test_image_is_always_dropped(tmp_path: Path, section: dict) -> None:
    """The same file, the same pixels in another file, and a JPEG of 500 × 400 pixels written as PNG."""
    small, large = encoded(make_image(1)), encoded(make_image(2, (500, 400)), "JPEG")
    as_png = encoded(Image.open(io.BytesIO(large)))
    resaved = encoded(make_image(2, (500, 400)), "JPEG", quality=40)
    rows = [
        pair(small, "a test", split="test"),
        pair(large, "another test", split="test"),
        pair(small, "the file itself"),
        pair(encoded(make_image(1), "BMP"), "its pixels"),
        pair(as_png, "the pixels of the other"),
        pair(resaved, "only near"),
        pair(encoded(make_image(3)), "unrelated"),
    ]
    _, ledger, _ = run(tmp_path, rows, **section)
    assert [entry["rule"] for entry in ledger] == ["", "", *["in_test_set"] * 3, "", ""]
    assert [entry["detail"] for entry in ledger[2:5]] == [rows[0]["uid"], rows[0]["uid"], rows[1]["uid"]]


def test_altered_copies_of_a_test_image_are_dropped_if_wanted(tmp_path: Path) -> None:
    test = make_image(1)
    rows = [
        pair(encoded(test), "a test", split="test"),
        pair(encoded(test.transpose(Image.Transpose.FLIP_LEFT_RIGHT)), "mirrored"),
        pair(encoded(make_image(2)), "unrelated"),
    ]
    assert [entry["rule"] for entry in run(tmp_path / "off", rows)[1]] == ["", "", ""]
    ledger = run(tmp_path / "on", rows, altered_copies=0.9)[1]
    assert [entry["rule"] for entry in ledger] == ["", "altered_copy", ""]
    assert ledger[1]["detail"] == rows[0]["uid"] and ledger[1]["value"] > ledger[1]["threshold"] == 0.9


def test_the_test_split_stays_as_it_is_and_its_faults_are_reported(tmp_path: Path) -> None:
    """Each kind of row that a default rule drops from training, held out; only what cannot be scored is dropped."""
    rows = [{**row, "split": "test"} for row in noisy() if row["source"] != "in_test_set"]
    curated, ledger, summary = run(tmp_path, [*rows, pair(encoded(make_image(99)), "to train on")])
    not_examples = {"undecodable", "exact_duplicate"}
    kept = [row for row in rows if row["source"] not in not_examples]
    assert [row["uid"] for row in curated.rows() if row["split"] == "test"] == [row["uid"] for row in kept]
    assert [row["caption"] for row in curated.rows()][:-1] == [row["caption"] for row in kept]
    expected = dict.fromkeys(BY_DEFAULT - not_examples - {"in_test_set"}, 2)
    assert summary["held_out_faults"] == expected and curated.card.notes["held_out_faults"] == expected
    assert [e["fault"] or e["rule"] for e in ledger[:-1]] == [row["source"] for row in rows]
    small = next(entry for entry in ledger if entry["fault"] == "too_small")
    assert small["detail"] == "held out, fails too_small 9" and small["verdict"] == "kept"
    assert "kept; reported, because it is held out" in history(tmp_path / "ledger", small["uid"])[0]
    assert "2 fail too_small" in (tmp_path / "funnel.html").read_text(encoding="utf-8")


def test_a_held_out_caption_is_changed_only_to_remove_personal_data(tmp_path: Path) -> None:
    held_out = {"split": "test", "label": "boat"}
    rows = [
        pair(encoded(make_image(1)), "IMG_0001.jpg", **held_out),
        pair(encoded(make_image(2)), "a boat, phone 555-867-5309", **held_out),
        pair(encoded(make_image(3)), "", **held_out),
    ]
    for mode, second in (("drop", ""), ("remove", "a boat,")):
        curated, _, summary = run(tmp_path / mode, rows, pii=mode)
        assert [row["caption"] for row in curated.rows()] == ["IMG_0001.jpg", second, ""]
        assert summary["held_out_faults"] == {"junk_text": 1}


def test_a_training_pair_in_the_test_set_is_dropped_and_the_test_pair_kept(tmp_path: Path) -> None:
    image = encoded(make_image(1))
    rows = [pair(image, "a cat"), pair(image, "a cat", split="test"), pair(encoded(make_image(2)), "a dog")]
    curated, ledger, _ = run(tmp_path, rows)
    assert [entry["rule"] for entry in ledger] == ["in_test_set", "", ""]
    assert [row["split"] for row in curated.rows()] == ["test", "train"]


def test_if_nothing_is_kept_the_error_names_the_strictest_rule(tmp_path: Path) -> None:
    rows = [pair(encoded(make_image(i)), "click here") for i in range(3)] + [pair(b"no picture", "a cat")]
    with pytest.raises(
        DataError, match=r"none of 4 pairs is kept; rule 'junk_text' dropped 3 \(first: boilerplate\)"
    ) as caught:
        run(tmp_path, rows)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "curated").exists()


def test_an_empty_dataset_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="contains no pairs"):
        run(tmp_path, [])


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"min_side": 0}, "min_side"),
        ({"max_aspect": 0.5}, "max_aspect"),
        ({"phash_distance": 40}, "phash_distance"),
        ({"max_cell_diff": 3}, "nearest is 'max_cell_difference'"),
        ({"score": {"threshold": 3}}, "threshold"),
        ({"score": {"threshold": "otzu"}}, "threshold"),
        ({"score": {"fraction": 0}}, "fraction"),
    ],
)
def test_invalid_values_are_rejected(section: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load(CurateConfig, {"curate": section}, "curate")


@pytest.mark.parametrize(
    ("name", "section"),
    [
        ("blocklist", {"blocklist": ["nowhere"]}),
        ("decontaminate", {"decontaminate": ["nowhere"]}),
        ("balance.entries", {"balance": {"limit": 5, "entries": "nowhere"}}),
        ("clusters.reference", {"clusters": {"reference": "nowhere"}, "score": {"model": "bootstrap"}}),
        ("captioner", {"captioner": "nowhere", "score": {"model": "bootstrap"}}),
    ],
)
def test_a_missing_file_is_reported_before_any_work(tmp_path: Path, name: str, section: dict) -> None:
    with pytest.raises(DataError, match=rf"curate\.{name} nowhere: no such file or folder"):
        run(tmp_path, [pair(b"", "a cat")], **section)
    assert not (tmp_path / ".shards").exists()


def test_an_invalid_bootstrap_section_is_rejected_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"bootstrap\.objectiv"):
        run(tmp_path, [pair(b"", "a cat")], score={"model": "bootstrap"}, bootstrap={"objectiv": "contrastive"})


def test_an_inconsistent_ledger_is_not_written(tmp_path: Path) -> None:
    ledger = Ledger(["a", "b"], ["train", "train"])
    ledger.drop("blank", np.array([True, False]))
    assert ledger.drop("noise", np.array([True, False])).size == 0  # the first rule dropped it already
    ledger.rule[1] = "some other rule"
    with pytest.raises(AssertionError):
        ledger.write(tmp_path / "ledger", {})
    assert not (tmp_path / "ledger").exists()


def test_the_funnel_shows_counts_and_images_and_needs_no_network(tmp_path: Path) -> None:
    rows = noisy() + [pair(encoded(make_image(70)), "<script>alert(1)</script>")]
    summary = run(tmp_path, rows)[2]
    page = (tmp_path / "funnel.html").read_text(encoding="utf-8")
    assert f"<b>{summary['kept']}</b> of {len(rows)} pairs" in page
    assert all(f"<h2>{rule} <small>2 dropped" in page for rule in RULES if rule in BY_DEFAULT - {"junk_text"})
    assert "<script" not in page and "&lt;script&gt;" in page
    assert "http://" not in page and "https://" not in page
    assert page.count("data:image/webp;base64,") >= 2 * 9


def test_sections_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        ScoreConfig().model = "x"  # type: ignore[misc]


def shared(name: str, limit: int) -> list[dict[str, Any]]:
    folder = SHARED / name
    if not folder.exists():
        pytest.skip(f"{folder} does not exist")
    lines = (folder / "pairs.jsonl").read_text(encoding="utf-8").splitlines()[:limit]
    records = [json.loads(line) for line in lines]
    return [pair((folder / row["image"]).read_bytes(), row["caption"]) for row in records]


def test_clean_emoji_are_kept(tmp_path: Path) -> None:
    rows = shared("emoji", 700)
    curated, ledger, _ = run(tmp_path, rows)
    dropped = [entry for entry in ledger if entry["verdict"] == "dropped"]
    assert {entry["rule"] for entry in dropped} <= {"near_duplicate"}
    captions = {row["uid"]: row["caption"] for row in rows}
    # "family" and "family: man, woman, boy" look alike; hearts of two colours and clocks do not.
    assert all(captions[entry["uid"]].startswith("family") for entry in dropped), [captions[e["uid"]] for e in dropped]
    assert len(curated) >= len(rows) - 2


def test_recompressed_emoji_and_photos_are_found(tmp_path: Path) -> None:
    rows = shared("emoji", 300)[::5] + shared("textbooks", 60)
    originals = run(tmp_path / "alone", rows)[2]["kept"]
    copies = []
    for row in rows:
        image = Image.open(io.BytesIO(row["image"])).convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
        image = image.resize((image.width * 3 // 4, image.height * 3 // 4), Image.Resampling.LANCZOS)
        copies.append(pair(encoded(image, "JPEG", quality=80), row["caption"] + " again"))
    _, ledger, summary = run(tmp_path / "both", rows + copies)
    assert originals <= summary["kept"] <= originals + 0.03 * len(rows)
    number = {row["uid"]: i % len(rows) for i, row in enumerate(rows + copies)}
    pairs = [(number[e["uid"]], number[e["detail"]]) for e in ledger if e["rule"] == "near_duplicate"]
    assert sum(one == other for one, other in pairs) >= 0.97 * len(rows)
