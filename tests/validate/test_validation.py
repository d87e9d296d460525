import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import ExifTags, Image

from components.validate.image_checks import read_jpeg_size
from components.validate.row_table import build_table
from components.validate.validation import ValidateConfig, validate
from pipelines.local_runner import _as_exception, _failed_record, _log_step
from pipelines.step_cli import run_step
from tests.conftest import executor_input
from vlmflow.artifacts import dataset
from vlmflow.config.recipes import load
from vlmflow.errors import DataError, GateError, RecipeError
from vlmflow.images import image_bytes as ingested
from vlmflow.runtime.step_runner import main
from vlmflow.tracking import mlflow_store


def picture(shade: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), (shade, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def pair(number: int = 0, **changes: Any) -> dict[str, Any]:
    return {
        "uid": f"u{number}", "image": picture(number), "caption": "a cat", "width": 40, "height": 30, "source": "s",
        "licence": "", "split": "train", "label": "", "lines": [{"text": "t", "x0": 0, "y0": 0, "x1": 9, "y1": 9}],
        "regions": [{"phrase": "p", "category": "", "x0": 1, "y0": 2, "x1": 40, "y1": 30}], **changes,
    }  # fmt: skip


def conversation(number: int = 0, *turns: str, **changes: Any) -> dict[str, Any]:
    roles = ("user", "assistant") * 3
    messages = [
        {"role": role, "content": text} for role, text in zip(roles, turns or ("What?", "A cat."), strict=False)
    ]
    return {"uid": f"u{number}", "pair": "p", "images": [picture(number)], "messages": messages, "task": "vqa",
            "split": "train", **changes}  # fmt: skip


def preference(number: int = 0, **changes: Any) -> dict[str, Any]:
    return {"uid": f"u{number}", "pair": "p", "images": [picture(number)], "prompt": "What?", "chosen": "A cat.",
            "rejected": "A dog.", "source": "rule", "split": "train", **changes}  # fmt: skip


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    return exif


ROWS = {"pairs": pair, "conversations": conversation, "preferences": preference}


def judge(folder: Path, schema: str, rows: list[dict[str, Any]], **section: Any) -> dict[str, Any]:
    """Return the written verdict; GateError passes through, after checking that it spoiled nothing."""
    dataset.write(folder / "data", schema, rows)
    report, verdict = folder / "report.html", folder / "verdict.json"
    try:
        validate(folder / "data", ValidateConfig(**section), report, verdict)
    finally:
        assert "Validation of" in report.read_text(encoding="utf-8")
        written = json.loads(verdict.read_text(encoding="utf-8"))
    return written


def failures(verdict: dict[str, Any]) -> dict[str, tuple[str, int]]:
    """Return column → (severity, failing rows) of the expectations that failed."""
    return {
        one["column"]: (one["severity"], one["unexpected"]) for one in verdict["expectations"] if not one["success"]
    }


@pytest.mark.parametrize("schema", list(ROWS))
def test_valid_rows_pass_strict_validation(tmp_path: Path, schema: str) -> None:
    verdict = judge(tmp_path, schema, [ROWS[schema](i) for i in range(3)], strict=True)
    assert verdict["success"] and verdict["rows"] == 3 and verdict["schema"] == schema
    assert failures(verdict) == {}
    assert {one["severity"] for one in verdict["expectations"]} == {"critical", "warning"}


@pytest.mark.parametrize(
    ("row", "column"),
    [
        (pair(1, image=b"<html>"), "image_fault"),
        (pair(0), "uid"),
        (pair(1, caption=" ", regions=[], lines=[]), "empty_fault"),
    ],
)
def test_faults_that_curation_removes_are_warnings_unless_strict(
    tmp_path: Path, row: dict[str, Any], column: str
) -> None:
    verdict = judge(tmp_path, "pairs", [pair(0), row])
    assert verdict["success"] and failures(verdict)[column][0] == "warning"
    with pytest.raises(GateError, match=column):
        judge(tmp_path, "pairs", [pair(0), row], strict=True)


def test_a_test_pair_without_content_is_a_warning_because_curation_keeps_it(tmp_path: Path) -> None:
    rows = [pair(0), pair(1, caption=" ", regions=[], lines=[], split="test")]
    verdict = judge(tmp_path, "pairs", rows, strict=True)
    assert verdict["success"] and failures(verdict) == {"empty_test_fault": ("warning", 1)}


@pytest.mark.parametrize(
    ("changes", "column", "said"),
    [
        ({"split": "val"}, "split", "val"),
        ({"split": None}, "split", "\\(\\)"),
        ({"width": None}, "size_fault", "stated 0×30, is 40×30"),
        ({"image": None, "width": 0, "regions": []}, "line_fault", "outside"),
        ({"uid": None}, "uid", "not_be_null"),
        ({"width": 41}, "size_fault", "stated 41×30, is 40×30"),
        (
            {"regions": [{"phrase": "p", "category": "", "x0": 1, "y0": 2, "x1": 42, "y1": 9}]},
            "region_fault",
            "outside",
        ),
        (
            {"regions": [{"phrase": "p", "category": "", "x0": 5, "y0": 2, "x1": 5, "y1": 9}]},
            "region_fault",
            "without area",
        ),
        (
            {"regions": [{"phrase": "", "category": "", "x0": 1, "y0": 2, "x1": 5, "y1": 9}]},
            "region_fault",
            "without phrase",
        ),
        ({"lines": [{"text": "t", "x0": 1, "y0": None, "x1": 5, "y1": 9}]}, "line_fault", "box"),
        ({"lines": [{"text": None, "x0": 1, "y0": 2, "x1": 5, "y1": 9}]}, "line_fault", "without text"),
    ],
)
def test_invalid_pairs_are_refused_by_uid(tmp_path: Path, changes: dict[str, Any], column: str, said: str) -> None:
    with pytest.raises(GateError) as caught:
        judge(tmp_path, "pairs", [pair(0), pair(1, **changes), pair(2)])
    line = str(caught.value)
    assert f"({column}): 1 rows" in line and re.search(said, line) and "\n" not in line
    assert changes.get("uid", "u1") is None or "u1" in line
    verdict = json.loads((tmp_path / "verdict.json").read_text(encoding="utf-8"))
    assert not verdict["success"] and failures(verdict)[column] == ("critical", 1)


def test_faults_in_later_batches_are_found(tmp_path: Path) -> None:
    rows = [pair(i % 200, uid=f"u{i}") for i in range(600)]
    outside = {"phrase": "p", "category": "", "x0": 1, "y0": 2, "x1": 99, "y1": 9}
    rows[515]["regions"] = [rows[0]["regions"][0], outside]
    with pytest.raises(GateError, match="1 rows, such as uid u515 \\(box outside"):
        judge(tmp_path, "pairs", rows)


def test_an_image_in_both_splits_is_a_warning(tmp_path: Path) -> None:
    rows = [pair(0), pair(1, image=picture(0), split="test"), pair(2, split="test")]
    assert failures(judge(tmp_path, "pairs", rows)) == {"split_fault": ("warning", 1)}


@pytest.mark.parametrize(
    ("schema", "make"), [("pairs", pair), ("conversations", conversation), ("preferences", preference)]
)
def test_training_rows_with_evaluation_images_are_critical(tmp_path: Path, schema: str, make: Any) -> None:
    evaluation = tmp_path / "evaluation"
    evaluation.mkdir()
    drawing = Image.radial_gradient("L")
    drawing.save(evaluation / "drawing.png")
    buffer = io.BytesIO()
    drawing.save(buffer, "JPEG")
    own = (
        {"image": buffer.getvalue(), "width": 256, "height": 256}
        if schema == "pairs"
        else {"images": [buffer.getvalue()]}
    )
    rows = [make(0), make(1, **own)]
    judge(tmp_path / "unasked", schema, rows)
    judge(tmp_path / "clean", schema, [make(0), make(1, **own, split="test")], decontaminate=(str(evaluation),))
    with pytest.raises(GateError, match="evaluation"):
        judge(tmp_path / "leaky", schema, rows, decontaminate=(str(evaluation),))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (conversation(1, "What?"), "not from the assistant"),
        (conversation(1, "What?", " "), "is empty"),
        (conversation(1, "What?", "A <image>."), "contains <image>"),
        (conversation(1, "<image><image>What?", "A cat."), "2 <image> markers for 1 images"),
        (conversation(1, messages=[]), "no message"),
        (conversation(1, messages=[{"role": "assistant", "content": "Hi"}]), "'assistant'"),
        (conversation(1, messages=[None]), "message 1 has role ''"),
        (conversation(1, images=[None]), "not an image"),
        (conversation(1, images=[]), "no image"),
        (conversation(1, images=[picture(), b"torn"]), "not an image"),
    ],
)
def test_bad_conversations_are_refused(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    with pytest.raises(GateError, match=said):
        judge(tmp_path, "conversations", [conversation(0), row])


@pytest.mark.parametrize(
    "row",
    [
        conversation(1, "<image>What?", "A cat.", "Sure?", "Yes."),
        conversation(1, "", "A cat."),
        conversation(1, messages=[{"role": role, "content": "x"} for role in ("system", "user", "assistant")]),
    ],
)
def test_valid_conversations_pass(tmp_path: Path, row: dict[str, Any]) -> None:
    assert failures(judge(tmp_path, "conversations", [row])) == {}


@pytest.mark.parametrize(
    ("changes", "column"),
    [
        ({"rejected": "A cat. "}, "choice_fault"),
        ({"prompt": ""}, "prompt_length"),
        ({"prompt": "<image><image>What?"}, "choice_fault"),
        ({"chosen": "A <image>."}, "choice_fault"),
        ({"rejected": " "}, "rejected_length"),
        ({"images": []}, "image_fault"),
    ],
)
def test_bad_preferences_are_refused(tmp_path: Path, changes: dict[str, Any], column: str) -> None:
    with pytest.raises(GateError, match=column):
        judge(tmp_path, "preferences", [preference(0), preference(1, **changes)])


def test_long_texts_and_unknown_tasks_are_warnings(tmp_path: Path) -> None:
    verdict = judge(tmp_path, "pairs", [pair(0), pair(1, caption="x" * 101)], max_text=100)
    assert failures(verdict) == {"caption_length": ("warning", 1)}
    row = conversation(0, "x" * 60, "y" * 60, task="chat")
    verdict = judge(tmp_path, "conversations", [row], max_text=100)
    assert failures(verdict) == {"text_length": ("warning", 1), "task": ("warning", 1)}


def jpeg(number: int, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((40, 30)).rotate(number).convert("RGB").save(buffer, "JPEG", **options)
    return buffer.getvalue()


def spoiled(encoded: bytes) -> bytes:
    """With its header and its end, and without the tables that decoding needs."""
    return encoded.replace(b"\xff\xdb", b"\xff\xfe")


@pytest.mark.parametrize("encoded", [jpeg(0), picture()], ids=["jpeg", "png"])
def test_truncated_images_are_found_outside_the_sample(tmp_path: Path, encoded: bytes) -> None:
    rows = [pair(0), pair(1, image=encoded), pair(2, image=encoded[: len(encoded) * 3 // 4])]
    verdict = judge(tmp_path, "pairs", rows, decode=0)
    assert failures(verdict) == {"image_fault": ("warning", 1)}
    assert "cannot be decoded" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_decoded_sample_depends_on_content_alone(tmp_path: Path) -> None:
    rows = [pair(i, image=spoiled(jpeg(i))) for i in range(200)]
    found = {}
    for name, order, decode in (("none", rows, 0), ("all", rows, None), ("some", rows, 40), ("turned", rows[::-1], 40)):
        frame = build_table(dataset.write(tmp_path / name, "pairs", order), decode)
        found[name] = set(frame["uid"][frame["image_fault"].notna()])
    assert len(found["none"]) == 0 and len(found["all"]) == 200
    assert 15 < len(found["some"]) < 80 and found["turned"] == found["some"]


@pytest.mark.parametrize(
    "options",
    [{}, {"progressive": True}, {"comment": b"x" * 999}, {"exif": turned()}, {"icc_profile": b"x" * 70000}],
    ids=["plain", "progressive", "comment", "turned", "profile"],
)
def test_the_fast_jpeg_size_agrees_with_pillow(options: dict[str, Any]) -> None:
    encoded = jpeg(3, **options)
    quick = read_jpeg_size(encoded)
    assert (quick is None) == ("exif" in options)  # a picture that may be turned gets the closer look
    assert (quick or ingested.read_size(encoded)) == ingested.read_size(encoded)
    for end in range(0, len(encoded), 7):  # damage is never a crash, and never another size
        assert read_jpeg_size(encoded[:end]) in (None, quick)


@pytest.mark.parametrize("schema", list(ROWS))
def test_an_empty_dataset_is_refused(tmp_path: Path, schema: str) -> None:
    with pytest.raises(GateError, match="row_count_to_be_between: observed 0"):
        judge(tmp_path, schema, [])


def test_the_report_loads_nothing_and_runs_no_script(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    judge(tmp_path, "pairs", [pair(0, image=b"torn"), pair(1, uid=evil, image=b"")])
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "not an image" in page and "Every image has a readable header".replace("'", "&#39;") in page
    assert not re.search(r"https?://|<script|<link|<img|@import|url\(", page)


def test_usage_errors_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a dataset folder"):
        validate(tmp_path, ValidateConfig(), tmp_path / "r.html", tmp_path / "v.json")
    with pytest.raises(RecipeError, match="min_rows"):
        load(ValidateConfig, {"validate": {"min_rows": -1}}, "validate")
    with pytest.raises(RecipeError, match="decode: must be at least 0 or null, got -1"):
        load(ValidateConfig, {"validate": {"decode": -1}}, "validate")


def test_a_missing_section_skips_validation(tmp_path: Path) -> None:
    dataset.write(tmp_path / "data", "pairs", [pair(0, split="val")])
    places = {name: str(tmp_path / name) for name in ("report", "verdict")}
    run_step("validate", "validate_curated: null\n", {"data": str(tmp_path / "data")}, places,
             {"section": "validate_curated"})  # fmt: skip
    assert "no section 'validate_curated'" in Path(places["verdict"]).read_text(encoding="utf-8")
    assert "no section" in Path(places["report"]).read_text(encoding="utf-8")


def test_a_failed_validation_still_writes_its_report(tmp_path: Path) -> None:
    dataset.write(tmp_path / "data", "pairs", [pair(0, split="val")])
    places = {name: str(tmp_path / name) for name in ("report", "verdict")}
    with pytest.raises(GateError, match="split"):
        run_step("validate", "validate: {}\n", {"data": str(tmp_path / "data")}, places, {})
    assert not json.loads(Path(places["verdict"]).read_text(encoding="utf-8"))["success"]
    assert "Failed" in Path(places["report"]).read_text(encoding="utf-8")


def test_the_report_of_a_failed_validation_is_in_the_run_and_in_mlflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "home" / "1"
    monkeypatch.setenv("VLMFLOW_HOME", str(run.parent))
    monkeypatch.setenv("VLMFLOW_RUN", str(run))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    dataset.write(tmp_path / "data", "pairs", [pair(0, split="val")], revision="abc123")
    place = run / "life" / "validate"

    given = executor_input(
        place,
        {"recipe": "validate_raw: {}\n", "section": "validate_raw"},
        {"data": tmp_path / "data"},
        ["report", "verdict"],
    )
    call = ["kfp.dsl.executor_main", "--module", "components.validate.component", "--function", "validate"]
    assert main([*call, "--executor_input", given]) == 2
    record = _failed_record(run)
    assert f"see {place / 'report'}" in str(_as_exception(record, run, RuntimeError()))
    assert "Failed" in (run / "validate-raw" / "report").read_text(encoding="utf-8")
    _log_step(run, record, None)
    written = json.loads((run / "steps" / "validate-raw.json").read_text(encoding="utf-8"))
    client = mlflow_store.client()
    assert [file.path for file in client.list_artifacts(written["mlflow_run_id"])] == ["report.html"]
    tags = client.get_run(written["mlflow_run_id"]).data.tags
    assert (tags["status"], tags["data_revision"]) == ("failed", "abc123")


def test_a_shard_that_was_cut_off_or_changed_is_refused(tmp_path: Path) -> None:
    written = dataset.write(tmp_path / "data", "pairs", [pair(i) for i in range(3)])
    shard = tmp_path / "data" / written.card.shards[0]["name"]
    content = shard.read_bytes()
    other = dataset.write(tmp_path / "other", "pairs", [pair(i, caption="another") for i in range(3)])

    def refused() -> str:
        with pytest.raises(DataError) as caught:
            validate(tmp_path / "data", ValidateConfig(), tmp_path / "report.html", tmp_path / "verdict.json")
        return str(caught.value)

    shard.write_bytes(content[:-100])
    assert f"shard {shard.name} is cut off" in refused()
    shard.write_bytes((other.path / shard.name).read_bytes())
    assert f"{shard.name}: its sha256" in refused()
    damaged = bytearray(content)
    damaged[len(content) // 3 : len(content) // 2] = bytes(len(content) // 2 - len(content) // 3)
    shard.write_bytes(damaged)
    with pytest.raises(DataError, match=f"shard {shard.name} is damaged"):
        list(written.rows())
