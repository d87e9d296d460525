"""The encoder filters with a real encoder: a small one, bootstrapped once on squares of known colours."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from components.curate import cache, text_masking
from components.curate.cache import EmbeddingCache
from components.curate.encoder import Encoder
from tests.curate.test_curation import encoded, make_image
from tests.curate.test_score import row, run, squares
from vlmflow.artifacts.dataset import Dataset
from vlmflow.images.decoding import decode
from vlmflow.inference import loading
from vlmflow.runtime.code_hash import import_closure

COLOURS = ["red", "green", "blue", "yellow"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a dual encoder on squares of four colours."""
    root = tmp_path_factory.mktemp("encoder")
    training = {"max_steps": 80, "batch_size": 32, "learning_rate": 2e-3}
    bootstrap = {"training": training, "model": {"image_size": 32}}
    run(root, squares(1500, 0.1), score={"model": "bootstrap"}, bootstrap=bootstrap, max_cell_difference=None)
    return root / "scorer"


def everything(encoder: Path) -> dict[str, Any]:
    """Return a section without the rules that drop synthetic images."""
    return {"score": {"model": str(encoder), "threshold": -1.0}, "max_cell_difference": None}


def load_encoder(encoder: Path) -> Encoder:
    return Encoder(model=str(encoder), hash="", batch_size=16)


def rules(ledger: list[dict[str, Any]]) -> list[str]:
    return [entry["rule"] for entry in ledger]


def test_a_caption_that_names_another_class_is_dropped(tmp_path: Path, encoder: Path) -> None:
    rows = squares(300, 0.3) + [row(encoded(make_image(1)), "something else", "right")]
    ledger, summary = run(tmp_path, rows, **everything(encoder), label_consistency={"classes": COLOURS})
    wrong = np.array([one["source"] == "wrong" for one in rows])
    dropped = np.array([rule == "label_mismatch" for rule in rules(ledger)])
    assert (wrong & dropped).sum() >= 0.9 * dropped.sum() and (wrong & dropped).sum() >= 0.9 * wrong.sum()
    assert summary["dropped"]["label_mismatch"] == dropped.sum()
    assert not dropped[-1]  # mentions no class
    first = ledger[int(np.flatnonzero(dropped)[0])]
    assert first["value"] > first["threshold"] == 1 and "image is most similar to" in first["detail"]


def test_each_cluster_keeps_at_most_per_cluster_pairs(tmp_path: Path, encoder: Path) -> None:
    rows = squares(200, 0)
    ledger, summary = run(tmp_path, rows, **everything(encoder), clusters={"count": 4, "per_cluster": 10})
    assert 4 <= summary["kept"] <= 40 and summary["dropped"]["crowded_cluster"] > 100
    kept = [one["caption"] for one, entry in zip(rows, ledger, strict=True) if entry["verdict"] == "kept"]
    assert max(kept.count(caption) for caption in set(kept)) <= 20
    crowded = [entry for entry in ledger if entry["rule"] == "crowded_cluster"]
    assert all(e["value"] > e["threshold"] == 10 and e["detail"].startswith("cluster ") for e in crowded)


def test_only_clusters_of_the_reference_are_kept(tmp_path: Path, encoder: Path) -> None:
    reference = tmp_path / "reference"
    reference.mkdir()
    for number, one in enumerate(one for one in squares(40, 0) if "red" in one["caption"]):
        (reference / f"{number}.png").write_bytes(one["image"])
    (reference / "broken.png").write_bytes(b"no picture")
    rows = [{**one, "source": one["caption"].split()[1]} for one in squares(260, 0)[40:]]
    clusters = {"count": 12, "reference": str(reference)}
    ledger, _ = run(tmp_path, rows, **everything(encoder), clusters=clusters)
    kept = [one["source"] for one, entry in zip(rows, ledger, strict=True) if not entry["rule"]]
    assert set(rules(ledger)) <= {"", "outside_reference", "exact_duplicate"}
    reds = sum(one["source"] == "red" for one in rows)
    assert kept.count("red") >= 0.9 * len(kept) and kept.count("red") >= 0.9 * reds


def test_semantic_duplicates_are_dropped(tmp_path: Path, encoder: Path) -> None:
    rows = squares(120, 0)
    clusters = {"count": 4, "epsilon": 0.02}
    ledger, summary = run(tmp_path, rows, **everything(encoder), clusters=clusters)
    assert summary["dropped"]["semantic_duplicate"] > 30
    by_uid = {one["uid"]: one for one in rows}
    for entry in ledger:
        if entry["rule"] == "semantic_duplicate":
            assert entry["value"] > entry["threshold"] == pytest.approx(0.98)
            assert by_uid[entry["detail"]]["caption"] == by_uid[entry["uid"]]["caption"]


def test_the_kept_set_does_not_depend_on_the_order_of_rows(tmp_path: Path, encoder: Path) -> None:
    rows = squares(150, 0.2)
    section = {
        **everything(encoder), "label_consistency": {"classes": COLOURS}, "balance": {"limit": 3},
        "max_images_per_caption": 30,
        "clusters": {"count": 5, "epsilon": 0.001, "per_cluster": 15},
    }  # fmt: skip
    kept = []
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(rows))
        ledger, summary = run(tmp_path / str(seed), [rows[i] for i in order], **section)
        kept.append({entry["uid"] for entry in ledger if entry["verdict"] == "kept"})
        fell = {rule for rule, count in summary["dropped"].items() if count}
    assert kept[0] == kept[1] == kept[2] and 0 < len(kept[0]) < 150
    assert fell == {"caption_duplicate", "label_mismatch", "semantic_duplicate", "crowded_cluster", "balancing"}
    page = (tmp_path / "0" / "funnel.html").read_text(encoding="utf-8")
    assert all(f"<h2>{rule} <small>" in page for rule in fell)


def test_embeddings_are_cached_until_the_encoder_changes(
    tmp_path: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = squares(40, 0.2)
    section = {"max_cell_difference": None, "clusters": {"count": 4, "per_cluster": 5}}
    section["score"] = {"model": str(encoder), "cache": str(tmp_path / "cache"), "threshold": -1.0}
    first = run(tmp_path / "a", rows, **section)
    with monkeypatch.context() as forbidden:
        forbidden.setattr(loading, "load", lambda path: pytest.fail("the encoder was loaded again"))
        again = run(tmp_path / "b", rows[::-1], **section)
    assert {e["uid"]: e for e in first[0]}.keys() == {e["uid"]: e for e in again[0]}.keys()
    same = ("uid", "score", "rule", "value")
    assert sorted([e[k] for k in same] for e in first[0]) == sorted([e[k] for k in same] for e in again[0])
    loaded = []
    load = loading.load
    monkeypatch.setattr(loading, "load", lambda path: loaded.append(path) or load(path))
    changed = tmp_path / "changed"
    changed.mkdir()
    for file in encoder.iterdir():
        (changed / file.name).write_bytes(file.read_bytes())
    settings = json.loads((changed / "processor_config.json").read_text())
    (changed / "processor_config.json").write_text(json.dumps({**settings, "note": "other preprocessing"}))
    run(tmp_path / "c", rows, **{**section, "score": {**section["score"], "model": str(changed)}})
    assert loaded  # the changed encoder has another hash


def test_the_cache_namespace_covers_encoder_and_code(monkeypatch: pytest.MonkeyPatch) -> None:
    namespace = cache.cache_namespace("a")
    assert namespace == cache.cache_namespace("a") != cache.cache_namespace("b")
    files = {file.name for file in import_closure("components.curate.encoder")}
    assert {"encoder.py", "embedding.py", "preprocessing.py", "decoding.py"} <= files
    monkeypatch.setattr(cache, "code_hash", lambda module: "other code")
    assert cache.cache_namespace("a") != namespace


def test_the_cache_keeps_flushed_embeddings_and_computes_the_rest(tmp_path: Path) -> None:
    texts = ["one", "two", "three", "four", "five"]
    computed: list[list[str]] = []

    def compute(contents: list[str]) -> np.ndarray:
        computed.append(contents)
        return np.array([[len(text), 0.5] for text in contents])

    first = EmbeddingCache(tmp_path, "encoder", "text")
    assert first.get_or_compute([*texts[:3], "one"], compute).tolist() == [[3, 0.5], [3, 0.5], [5, 0.5], [3, 0.5]]
    first.flush()
    first.get_or_compute(texts[3:4], compute)  # not flushed, as if the run were killed
    second = EmbeddingCache(tmp_path, "encoder", "text")
    assert second.get_or_compute(texts, compute)[:, 0].tolist() == [3, 3, 5, 4, 4]
    assert computed == [texts[:3], texts[3:4], texts[3:]]
    assert (
        EmbeddingCache(tmp_path, "other", "text").vectors == {} == EmbeddingCache(tmp_path, "encoder", "image").vectors
    )
    assert not list(tmp_path.rglob("*.partial"))


def test_text_in_an_image_is_painted_over(tmp_path: Path, encoder: Path) -> None:
    image = Image.new("RGB", (90, 60), (30, 120, 60))
    plain = encoded(image)
    ImageDraw.Draw(image).text((12, 20), "a red square", fill="white")
    box = {"text": "a red square", "x0": 10.5, "y0": 18.0, "x1": 85.0, "y1": 36.0}
    assert decode(text_masking.mask_lines(encoded(image), [box])).tobytes() == decode(plain).tobytes()
    assert text_masking.mask_lines(plain, []) is plain
    outside = {**box, "x0": -20.0, "x1": 400.0, "y0": 70.0, "y1": 90.0}
    assert decode(text_masking.mask_lines(plain, [outside])).tobytes() == decode(plain).tobytes()
    masked, unmasked = (
        run(tmp_path / str(mask_text), [row(encoded(image), "a red square", "", lines=[box])],
            min_contrast=0.0, min_correlation=0.0,
            score={"model": str(encoder), "threshold": -1.0, "mask_text": mask_text})[0][0]["score"]
        for mask_text in (True, False)
    )  # fmt: skip
    truth = float(load_encoder(encoder).cosine_similarities([(plain, "a red square")])[0])
    assert masked == pytest.approx(truth, abs=1e-5) and masked != pytest.approx(unmasked, abs=1e-4)


def test_the_better_of_original_and_proposed_caption_is_kept_and_both_are_recorded(
    tmp_path: Path, encoder: Path
) -> None:
    import torch

    from models.zoo import ZOO
    from vlmflow.artifacts import checkpoint

    torch.manual_seed(0)
    loaded = loading.load(encoder)
    speaker, processor = ZOO["tiny-vlm"].from_dual_encoder(loaded.model, loaded.processor)
    captioner = tmp_path / "captioner"
    checkpoint.save(captioner, speaker, processor, family="tiny-vlm")
    rows = squares(24, 0.5)
    section = {**everything(encoder), "captioner": str(captioner)}
    ledger, summary = run(tmp_path, rows, **section)
    captions = {one["uid"]: one["caption"] for one in Dataset(tmp_path / "curated").rows()}
    replaced = 0
    for one, entry in zip(rows, ledger, strict=True):
        assert entry["web_caption"] == one["caption"] and entry["proposed_caption"] is not None
        web = float(load_encoder(encoder).cosine_similarities([(one["image"], one["caption"])])[0])
        proposed = captions[one["uid"]] != one["caption"]
        assert captions[one["uid"]] == (entry["proposed_caption"] if proposed else one["caption"])
        assert entry["score"] == pytest.approx(max(web, entry["proposed_score"]) if proposed else web, abs=1e-4)
        replaced += proposed
    assert summary["captions_proposed"] == replaced
