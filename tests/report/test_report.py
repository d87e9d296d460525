"""The report: its content, its list of shortcomings, and that it does not access the network."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.report import findings, samples
from components.report.artifacts import ArtifactPaths, Capability, RunArtifacts
from components.report.config import ReportConfig
from components.report.lineage import graph
from components.report.page import render
from vlmflow.artifacts import dataset
from vlmflow.artifacts.dataset import Dataset
from vlmflow.errors import ModelError
from vlmflow.evaluation.config import GateConfig
from vlmflow.images.boxes import CODECS, Box

RECIPE = "seed: 0\ngate: {resamples: 100}\n"
GATE = GateConfig(resamples=100)
VOID = {"meta", "link", "img", "br", "image", "rect", "path", "use"}


class Page(HTMLParser):
    """Open tags, addresses that a browser would fetch, and the visible text."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    @property
    def addresses(self) -> list[str]:
        wanted = ("src", "href", "xlink:href", "action", "srcset", "poster", "data")
        return [value or "" for _, attrs in self.tags for key, value in attrs.items() if key in wanted]


@pytest.fixture(scope="module")
def html(run: ArtifactPaths, tmp_path_factory: pytest.TempPathFactory) -> str:
    return draw(run, tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def draw(paths: ArtifactPaths, folder: Path) -> str:
    render(paths, folder / "report.html", RECIPE, ReportConfig(pairs=6, preferences=2))
    return (folder / "report.html").read_text(encoding="utf-8")


def write_examples(scores: Path, capability: str, values: list[float]) -> None:
    """Replace the per-example scores."""
    file = scores / "examples.parquet"
    file.unlink()
    rows = [{"capability": capability, "example": str(i), "score": value} for i, value in enumerate(values)]
    pq.write_table(pa.Table.from_pylist(rows), file)


def test_every_tag_is_closed_and_nothing_is_fetched(page: Page, html: str):
    assert page.open == []
    outside = [a for a in page.addresses if not a.startswith(("data:", "#"))]
    assert outside == []
    assert "@import" not in html and not re.search(r"url\((?!#)", html.split("<iframe")[0])
    assert "script" not in {tag for tag, _ in page.tags}


def test_text_from_the_data_is_escaped_everywhere(html: str, page: Page, hostile: str):
    assert hostile not in html
    assert hostile in page.text  # it is shown as text
    frame = next(attrs for tag, attrs in page.tags if tag == "iframe")
    assert hostile not in (frame["srcdoc"] or "") and frame["sandbox"] in ("", None)


def test_the_header_shows_each_capability_of_the_chosen_model_with_its_interval(page: Page, run: ArtifactPaths):
    scores = json.loads((run.aligned_scores / "scores.json").read_text())["capabilities"]
    assert len(scores) > 8
    for capability in scores.values():
        value, low, high = (f"{100 * capability[key]:.1f}" for key in ("value", "low", "high"))
        assert f"{value} {low}–{high}" in page.text
    assert "vlm version 1" in page.text and "champion" in page.text and "31 ms" in page.text


def test_a_skipped_stage_shows_the_reason_and_no_curve(page: Page, run: ArtifactPaths):
    assert "skipped: the recipe has no section 'ocr'" in page.text
    read = RunArtifacts(run, GATE).stages["ocr"]
    assert read.card["curve"] and read.curve == []


def test_dropped_pairs_show_their_rule(run: ArtifactPaths):
    kept, dropped = samples.pairs(RunArtifacts(run, GATE), 8, seed=0)
    assert len(kept) == len(dropped) == 8
    assert {pair.rule for pair in kept} == {""} and len({pair.rule for pair in dropped}) > 2
    assert "junk_text" in {pair.rule for pair in dropped}


def test_the_same_artifacts_give_the_same_page(run: ArtifactPaths, html: str, tmp_path: Path):
    assert draw(run, tmp_path) == html


def test_lineage_leads_from_raw_pairs_to_the_version(run: ArtifactPaths):
    drawn = graph(RunArtifacts(run, GATE))
    nodes = {node.title: node for node in drawn.nodes}
    assert "OCR" not in nodes  # copied unchanged: the same artifact as Ground
    way = ["Raw", "Curated", "Contrastive", "Caption", "Ground", "Preferences", "DPO", "vlm version 1"]
    rows = [nodes[title].row for title in way]
    assert rows == sorted(set(rows))
    assert nodes["Ground"].hash in nodes["DPO"].parents and nodes["DPO"].hash in nodes["vlm version 1"].parents
    assert len({(node.row, node.column) for node in drawn.nodes}) == len(drawn.nodes), "two nodes overlap"


def test_boxes_are_parsed_by_the_models_box_convention():
    truth, size = Box(8, 16, 24, 48, 64, 64), [64, 64]
    sample = {"capability": "grounding", "image": "", "size": size, "prompt": "Where?", "score": 1.0}
    sample |= {"truth": CODECS["pixels"].encode(truth), "answer": CODECS["paligemma"].encode(truth)}
    right = samples._answer(sample, "paligemma")
    assert right.true_box == truth and right.answered_box and right.answered_box.iou(truth) > 0.98
    wrong = samples._answer(sample, "qwen-vl")
    assert wrong.true_box == truth and wrong.answered_box is None


def test_no_preferences_and_no_alignment(run: ArtifactPaths, tmp_path: Path, changed):
    parents = Dataset(run.preferences).card.parents
    notes = {"skipped": "nothing to prefer"}
    dataset.write(tmp_path / "none", "preferences", [], step="preferences", parents=parents, notes=notes)
    paths = changed(aligned={"skipped": "0 pairs"}, control={"skipped": "0 pairs"})
    paths = replace(paths, preferences=tmp_path / "none")
    page = Page(draw(paths, tmp_path))
    assert "Alignment was skipped: 0 pairs." in page.text and "Alignment was skipped." in page.text
    assert "DPO − control" not in page.text


def test_few_capabilities_and_no_endpoint(run: ArtifactPaths, tmp_path: Path, changed):
    kept = {}
    for name in ("contrastive", "caption", "ground", "ocr", "aligned", "control"):
        scores = json.loads((getattr(run, f"{name}_scores") / "scores.json").read_text())["capabilities"]
        kept[f"{name}_scores"] = {"capabilities": {k: v for k, v in scores.items() if k in ("retrieval", "captioning")}}
    paths = changed(**kept, transcript={"exchanges": []}, version={"alias": "challenger"}, verdict={"promoted": False})
    page = Page(draw(paths, tmp_path))
    assert "The endpoint was not tested" in page.text and "not promoted" in page.text
    assert RunArtifacts(paths, GATE).capabilities == ["retrieval", "captioning"]
    assert "Acc@0.5" not in page.text


def test_empty_json_files_still_give_a_page(run: ArtifactPaths, tmp_path: Path):
    for name in ("verdict", "version", "transcript"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.json").write_text("{}")
    empty = {name: tmp_path / name for name in ("verdict", "version", "transcript")}
    assert "The endpoint was not tested" in Page(draw(replace(run, **empty), tmp_path)).text


def test_a_missing_artifact_is_an_error(run: ArtifactPaths, tmp_path: Path):
    with pytest.raises(ModelError, match=r"scores\.json: file is missing"):
        draw(replace(run, ground_scores=tmp_path), tmp_path)


@pytest.mark.parametrize(
    ("higher", "value", "control", "beaten"),
    [
        (True, (0.5, 0.4, 0.6), (0.1, 0.0, 0.2), True),
        (True, (0.5, 0.4, 0.6), (0.3, 0.2, 0.45), False),
        (False, (0.2, 0.1, 0.3), (0.9, 0.8, 1.0), True),
        (False, (0.9, 0.8, 1.0), (0.2, 0.1, 0.3), False),
        (True, (0.0, 0.0, 0.0), (0.0, 0.0, 0.0), False),
    ],
)
def test_a_control_is_beaten_only_if_the_intervals_do_not_overlap(higher, value, control, beaten):
    blank: dict[str, float] = dict(zip(("value", "low", "high"), control, strict=True))
    value, low, high = value
    capability = Capability(
        value=value,
        low=low,
        high=high,
        n=100,
        metric="m",
        higher_is_better=higher,
        controls={"blank": blank, "shuffled": blank},
    )
    assert capability.tied_controls == ([] if beaten else ["blank", "shuffled"])


class TestFindings:
    def kinds(self, paths: ArtifactPaths) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for finding in findings.shortcomings(RunArtifacts(paths, GATE)):
            found.setdefault(finding.kind, []).append(finding.text)
        return found

    def test_findings_of_the_run(self, run: ArtifactPaths):
        found = self.kinds(run)
        assert found["Skipped"] == ["OCR was skipped: the recipe has no section 'ocr'."]
        assert found["Data"] == [
            "Rejected by ingest, rows: 3 no such picture.",
            "The test split stays as it is; curation would have dropped from training 1 by junk text.",
        ]
        assert "Measured on only 4 examples" in found["Too few examples"][0]
        assert "Training" not in found  # the losses of this run fell
        assert "Refused by the gate" not in found

    def test_a_loss_that_did_not_fall(self, changed):
        found = self.kinds(changed(control={"curve": [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 1.5}]}))
        assert found["Training"] == ["SFT control: the loss did not fall (1.000 at the start, 1.500 at the end)."]

    def test_a_refusal_by_the_gate_shows_capability_and_difference(self, changed, tmp_path: Path):
        refused = {"capability": "grounding", "verdict": "worse", "difference": -0.12, "low": -0.2, "high": -0.04}
        paths = changed(verdict={"chosen": "fallback", "alignment": [refused]})
        text = "The gate refused: Grounding is worse than that of the model before alignment, by"
        assert self.kinds(paths)["Refused by the gate"] == [f"{text} −12.0 points [−20.0, −4.0]."]
        assert RunArtifacts(paths, GATE).final.name == "ground"  # ocr copied the model of ground

    def test_a_refusal_for_a_tied_control_names_it(self, changed):
        paths = changed(verdict={"unproven": {"retrieval": ["blank", "shuffled"]}, "promoted": False})
        text = "The gate refused: Retrieval is not better than with blank and shuffled images."
        assert self.kinds(paths)["Refused by the gate"] == [text]

    def test_a_regression_between_stages_is_found_by_its_examples(self, run: ArtifactPaths, changed):
        paths = changed(ground_scores={}, caption_scores={})
        for name, score in (("caption_scores", 1.0), ("ground_scores", 0.0)):
            write_examples(getattr(paths, name), "pope", [score if i % 7 else 0.5 for i in range(60)])
        worse = self.kinds(paths)["Regressions between stages"]
        assert any(text.startswith("POPE (yes or no) got worse in the stage Ground") for text in worse)

    def test_parse_failures_and_a_high_yes_ratio_are_shortcomings(self, run: ArtifactPaths, changed):
        scores = json.loads((run.aligned_scores / "scores.json").read_text())["capabilities"]
        scores["grounding"]["extras"] = {"parse failures": 0.25}
        scores["pope"]["extras"] = {"yes ratio": 0.97}
        scores["hallucination"]["extras"] = {"objects mentioned": 0}
        answers = self.kinds(changed(aligned_scores={"capabilities": scores}))["Answers"]
        assert "Grounding: 25.0% parse failures, counted as misses." in answers
        assert "POPE (yes or no): the model answers yes to 97.0% of the questions; 50% is expected." in answers
        assert any(text.startswith("Hallucination:") and "not meaningful" in text for text in answers)


def test_the_alignment_text_names_the_winner_on_hallucination(run: ArtifactPaths, changed):
    paths = changed(aligned_scores={}, control_scores={})
    for name, score in (("aligned_scores", 0.0), ("control_scores", -1.0)):  # negated scores: higher is better
        write_examples(getattr(paths, name), "hallucination", [score * (i % 3 > 0) for i in range(60)])
    sentences = findings.alignment(RunArtifacts(paths, GATE))
    assert sentences[0].endswith("DPO wins.")
    assert "better on Hallucination" in sentences[1]
