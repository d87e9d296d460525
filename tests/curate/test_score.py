import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from components.curate.config import CurateConfig, ScoreConfig
from components.curate.curation import curate
from components.curate.encoder import Encoder
from components.curate.score import MIN_SEPARATION, otsu_threshold, select_by_score
from vlmflow.artifacts import dataset
from vlmflow.artifacts.checkpoint import Checkpoint
from vlmflow.artifacts.dataset import Dataset, uid
from vlmflow.config.recipes import load
from vlmflow.errors import ModelError

COLOURS = {"red": (220, 30, 30), "green": (30, 170, 50), "blue": (40, 70, 230), "yellow": (245, 225, 40)}


@pytest.mark.parametrize("count", [1, 3, 10, 30, 101])
@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.5, 0.7, 1.0, 1e-3])
def test_a_fraction_keeps_exactly_the_rounded_up_number(count: int, fraction: float) -> None:
    generator = np.random.default_rng(count)
    scores = generator.integers(0, 4, count) / 4  # many ties
    uids = [f"{i:04d}" for i in generator.permutation(count)]
    keep, threshold = select_by_score(scores, uids, ScoreConfig(fraction=fraction))
    thousandths = round(fraction * 1000)
    assert keep.sum() == -(-count * thousandths // 1000)
    assert scores[keep].min() == threshold >= scores[~keep].max(initial=-1)
    tied = np.flatnonzero(scores == threshold)
    assert sorted((uids[i] for i in tied), key=str)[: keep[tied].sum()] == sorted(uids[i] for i in tied if keep[i])


def test_a_numeric_threshold_is_inclusive() -> None:
    keep, threshold = select_by_score(np.array([0.1, 0.25, 0.3]), ["a", "b", "c"], ScoreConfig(threshold=0.25))
    assert (keep.tolist(), threshold) == ([False, True, True], 0.25)


def test_otsu_matches_a_search_over_all_splits() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        scores = np.concatenate([generator.normal(0, 1, 30), generator.normal(generator.uniform(0, 6), 1, 50)]).round(1)

        def within(threshold: float, scores: np.ndarray = scores) -> float:
            low, high = scores[scores < threshold], scores[scores >= threshold]
            return len(low) * low.var() + len(high) * high.var()

        best = min(within(t) for t in np.unique(scores)[1:])
        threshold, separation = otsu_threshold(scores)
        assert within(threshold) == pytest.approx(best)
        assert separation == pytest.approx(1 - best / len(scores) / scores.var())


def test_otsu_without_two_groups() -> None:
    assert otsu_threshold(np.full(5, 0.3)) == (0.3, 0.0)
    assert otsu_threshold(np.array([0.3])) == (0.3, 0.0)
    assert otsu_threshold(np.random.default_rng(0).normal(size=20_000))[1] == pytest.approx(2 / math.pi, abs=0.01)


def square(colour: str, seed: int) -> bytes:
    """Return a square of the colour at a random position on a grey ramp, as PNG."""
    generator = np.random.default_rng(seed)
    pixels = np.repeat(np.linspace(60, 190, 64)[None, :, None], 64, axis=0).repeat(3, axis=2)
    if generator.random() < 0.5:
        pixels = pixels.transpose(1, 0, 2).copy()
    x, y, side = generator.integers(0, 34, 2).tolist() + [int(generator.integers(16, 30))]
    pixels[y : y + side, x : x + side] = COLOURS[colour]
    buffer = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def row(image: bytes, caption: str, source: str, **values: Any) -> dict[str, Any]:
    common = {"width": 64, "height": 64, "licence": "", "split": "train", "label": "", "regions": [], "lines": []}
    return {**common, "uid": uid(image, caption), "image": image, "caption": caption, "source": source, **values}


def squares(count: int, wrong: float) -> list[dict[str, Any]]:
    """Return squares of four colours; a fraction `wrong` of the captions names another colour, as `source` says."""
    generator, names, rows = np.random.default_rng(0), list(COLOURS), []
    for i in range(count):
        colour = names[i % 4]
        source = "wrong" if generator.random() < wrong else "right"
        named = colour if source == "right" else names[(i + int(generator.integers(1, 4))) % 4]
        rows.append(row(square(colour, i), f"a {named} square", source))
    return rows


def run(root: Path, rows: list[dict[str, Any]], **section: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    dataset.write(root / "raw", "pairs", rows)
    raw, curated, ledger, funnel, scorer = (
        root / name for name in ("raw", "curated", "ledger", "funnel.html", "scorer")
    )
    curate(raw, curated, ledger, funnel, scorer, load(CurateConfig, {"curate": section}, "curate"))
    assert len(Dataset(root / "curated")) == json.loads((root / "ledger" / "summary.json").read_text())["kept"]
    return pq.read_table(root / "ledger" / "ledger.parquet").to_pylist(), json.loads(
        (root / "ledger" / "summary.json").read_text(encoding="utf-8")
    )


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a tiny transformers CLIP with random weights and its processor."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import CLIPConfig, CLIPModel, CLIPProcessor, PreTrainedTokenizerFast
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    words = ["<pad>", "<s>", "</s>", "<unk>", "a", "square", *COLOURS]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = CLIPModel(
        CLIPConfig(
            text_config={
                **small,
                "vocab_size": len(words),
                "max_position_embeddings": 16,
                "eos_token_id": 2,
                "pad_token_id": 0,
            },
            vision_config={**small, "image_size": 32, "patch_size": 16},
            projection_dim=16,
        )
    )
    folder = tmp_path_factory.mktemp("clip")
    model.save_pretrained(folder)
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(images, fast).save_pretrained(folder)
    return folder


def test_a_transformers_clip_scores_and_a_fraction_is_kept(tmp_path: Path, clip: Path) -> None:
    rows = squares(20, 0.3) + [row(square("red", 99), "a red square", "", split="test")]
    region = {"phrase": "it", "x0": 0.0, "y0": 0.0, "x1": 9.0, "y1": 9.0}
    rows.append(row(square("blue", 98), "", "", regions=[region]))
    ledger, summary = run(tmp_path, rows, score={"model": str(clip), "fraction": 0.3})
    train, test, bare = ledger[:20], ledger[20], ledger[21]
    assert test["verdict"] == bare["verdict"] == "kept"
    assert test["score"] is bare["score"] is None  # the test split and pairs without a caption are not scored
    kept = [entry for entry in train if entry["verdict"] == "kept"]
    assert len(kept) == 6 and {entry["rule"] for entry in train} == {"", "clip_score"}
    assert min(e["score"] for e in kept) == summary["thresholds"]["clip_score"]
    assert max(e["value"] for e in train if e["rule"]) <= min(e["score"] for e in kept)
    expected = {"family": "external", "model": str(clip), "hash": Checkpoint(clip).hash}
    assert json.loads((tmp_path / "scorer" / "card.json").read_text()) == expected
    assert summary["scorer"]["hash"] == expected["hash"]
    page = (tmp_path / "funnel.html").read_text()
    assert "<h2>Scores" in page and "clip_score <small>14 dropped" in page


def test_scores_are_cosines_and_depend_only_on_the_pair(clip: Path) -> None:
    from vlmflow.images.decoding import decode
    from vlmflow.inference.embedding import embed_images, embed_texts
    from vlmflow.inference.loading import load as load_model

    rows = [(r["image"], r["caption"]) for r in squares(70, 0.5)]
    rows += [(image, f"{caption} and a word") for image, caption in rows[:7]]
    scorer = Encoder(model=str(clip), hash="", batch_size=16)
    scores = scorer.cosine_similarities(rows)
    order = np.random.default_rng(0).permutation(len(rows))
    assert (scorer.cosine_similarities([rows[i] for i in order]) == scores[order]).all()
    assert scorer.cosine_similarities(rows[40:41])[0] == scores[40]
    model = load_model(clip)
    images, texts = embed_images(model, [decode(i) for i, _ in rows]), embed_texts(model, [t for _, t in rows])
    cosine = [float(i @ t / math.sqrt((i @ i) * (t @ t))) for i, t in zip(images, texts, strict=True)]
    assert scores == pytest.approx(cosine, abs=1e-5)


def test_an_invalid_model_is_a_one_line_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = squares(4, 0)
    (tmp_path / "empty").mkdir()
    for model, message in (
        (str(tmp_path / "empty"), "config.json is missing"),
        ("./not/there/at/all", "no such folder"),
    ):
        with pytest.raises(ModelError, match=message) as caught:
            run(tmp_path / message.replace(" ", ""), rows, score={"model": model})
        assert "\n" not in str(caught.value)


def test_the_bootstrap_encoder_finds_wrong_captions(tmp_path: Path) -> None:
    rows = squares(1500, 0.25)
    training = {"max_steps": 80, "batch_size": 32, "learning_rate": 2e-3}
    bootstrap = {"training": training, "model": {"image_size": 32}}
    ledger, summary = run(tmp_path, rows, score={"model": "bootstrap"}, bootstrap=bootstrap, max_cell_difference=None)
    learned = Checkpoint(tmp_path / "scorer")
    assert learned.card["datasets"] == [Dataset(tmp_path / "raw").hash] and learned.card["hash"] == learned.hash
    kept = [r["source"] for r, entry in zip(rows, ledger, strict=True) if entry["verdict"] == "kept"]
    assert kept.count("right") / len(kept) > 0.95  # 0.75 by chance
    assert kept.count("right") > 0.95 * sum(r["source"] == "right" for r in rows)
    assert summary["scorer"]["separation"] > MIN_SEPARATION
    assert summary["scorer"]["hash"] == Checkpoint(tmp_path / "scorer").hash
