"""Clusters, balance and label consistency, on vectors and captions with known outcomes."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from components.curate import balance, clusters, label_consistency
from components.curate.config import CurateConfig
from components.curate.phrases import load_phrases
from vlmflow.config.recipes import load
from vlmflow.errors import DataError, RecipeError
from vlmflow.runtime.code_hash import ROOT


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def bundles(groups: int, size: int, spread: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return unit vectors around far-apart directions, and the index of the direction of each."""
    generator = np.random.default_rng(seed)
    centres = np.eye(groups * 2)[:groups]
    truth = np.repeat(np.arange(groups), size)
    return unit(centres[truth] + generator.normal(0, spread, (len(truth), groups * 2))), truth


def test_k_means_recovers_separated_groups() -> None:
    vectors, truth = bundles(6, 40, 0.05)
    assigned, cosine = clusters.nearest_centroids(vectors, clusters.centroids(vectors, 6, seed=0))
    for group in range(6):
        values, counts = np.unique(assigned[truth == group], return_counts=True)
        assert counts.max() == 40, (group, values)
    assert cosine.min() > 0.9
    assert len(clusters.centroids(vectors, None, seed=0)) == 5  # 240 images, about 50 per cluster


def test_clusters_do_not_depend_on_the_number_of_threads() -> None:
    code = (
        "import numpy as np; from components.curate import clusters;"
        "v = np.random.default_rng(0).normal(size=(900, 16)).astype('float32');"
        "v /= np.linalg.norm(v, axis=1, keepdims=True);"
        "print(clusters.centroids(v, 20, 3).tobytes().hex()[:200])"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True,
            env={"OMP_NUM_THREADS": threads, "PATH": "", "PYTHONPATH": str(ROOT)},
        ).stdout
        for threads in "12"
    }  # fmt: skip
    assert len(outputs) == 1


def test_semantic_duplicates_match_a_slow_formula_pair_by_pair() -> None:
    vectors, truth = bundles(3, 30, 0.2)
    centres = unit(np.stack([vectors[truth == group].mean(axis=0) for group in range(3)]))
    close = (vectors * centres[truth]).sum(axis=1)
    partner, cosine = clusters.semantic_duplicates(vectors, truth, close)
    rank = {row: i for i, row in enumerate(sorted(range(90), key=lambda row: (round(float(close[row]), 5), row)))}
    for row in range(90):
        earlier = [other for other in range(90) if truth[other] == truth[row] and rank[other] < rank[row]]
        if not earlier:
            assert partner[row] == -1 and cosine[row] == -1
            continue
        similar = {other: float(vectors[row] @ vectors[other]) for other in earlier}
        assert cosine[row] == pytest.approx(max(similar.values()), abs=1e-5)
        assert similar[int(partner[row])] == pytest.approx(max(similar.values()), abs=1e-5)


def test_semantic_duplicates_are_found_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, _ = bundles(1, 50, 0.3)
    close = vectors[:, 0]
    whole = clusters.semantic_duplicates(vectors, np.zeros(50, int), close)
    monkeypatch.setattr(clusters, "_BLOCK", 7)
    parts = clusters.semantic_duplicates(vectors, np.zeros(50, int), close)
    assert (whole[0] == parts[0]).all() and whole[1] == pytest.approx(parts[1], abs=1e-6)


def test_semantic_duplicates_by_precision_and_recall() -> None:
    """200 vectors, a third of them repeated with a little noise."""
    generator = np.random.default_rng(0)
    base = unit(generator.normal(size=(200, 32)))
    again = unit(base[:66] + generator.normal(0, 0.01, (66, 32)))
    vectors = np.concatenate([base, again])
    assigned, close = clusters.nearest_centroids(vectors, clusters.centroids(vectors, 8, seed=0))
    partner, cosine = clusters.semantic_duplicates(vectors, assigned, close)
    dropped = np.flatnonzero(cosine > 1 - 0.05)
    true = [row for row in dropped if abs(row - partner[row]) == 200]
    assert len(true) / len(dropped) >= 0.95 and len(true) / 66 >= 0.95


def test_rank_in_cluster() -> None:
    assert clusters.rank_in_cluster(np.array([1, 0, 1, 1]), np.array([0.5, 0.9, 0.1, 0.7])).tolist() == [2, 1, 1, 3]


def test_balance_keeps_rare_entries_and_subsamples_frequent_ones() -> None:
    matched = [{"cat"}] * 900 + [{"axolotl"}] * 10 + [{"cat", "axolotl"}, set()]
    probability = balance.keep_probabilities(matched, 50)
    assert probability[0] == pytest.approx(50 / 901)
    assert probability[905] == probability[910] == 1 and probability[911] == 0
    kept = (probability > balance.uniform_draws([str(i) for i in range(912)], 0))[:900].sum()
    assert 30 <= kept <= 70  # expected 50, standard deviation 7


def test_one_draw_per_pair_equals_one_draw_per_entry() -> None:
    """A simulation of the draws of each entry, where a pair is kept if any of its entries is drawn."""
    matched = [{"a"}] * 30 + [{"a", "b"}] * 30 + [{"b", "c"}] * 40 + [{"a", "b", "c"}] * 20
    counts = {entry: sum(entry in entries for entries in matched) for entry in "abc"}
    generator = np.random.default_rng(0)
    kept = np.zeros(len(matched))
    for _ in range(2000):
        kept += [any(generator.random() < 20 / max(counts[e], 20) for e in sorted(entries)) for entries in matched]
    assert balance.keep_probabilities(matched, 20) == pytest.approx(kept / 2000, abs=0.06)


def test_draws_depend_on_uid_and_seed_only() -> None:
    uids = [f"{i:032x}" for i in range(4000)]
    drawn = balance.uniform_draws(uids, 0)
    assert (balance.uniform_draws(uids[::-1], 0) == drawn[::-1]).all()
    assert not (balance.uniform_draws(uids, 1) == drawn).any()
    assert np.histogram(drawn, 10, (0, 1))[0] == pytest.approx([400] * 10, abs=100)


def test_entries_match_whole_words() -> None:
    entries = frozenset(["red car", "car", "carpet"])
    assert balance.match_entries("A Red-CAR on a street", entries) == {"red car", "car"}
    assert balance.match_entries("carpets", entries) == set()
    assert balance.match_entries("A cat, a CAT", None) == {"a", "cat"}


def test_entries_are_loaded_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "entries.txt").write_text("Red Car\n\ncarpet\n", encoding="utf-8")
    assert load_phrases(str(tmp_path / "entries.txt"), "balance.entries") == {"red car", "carpet"}
    with pytest.raises(DataError, match=r"balance\.entries .*nowhere: cannot be read"):
        load_phrases(str(tmp_path / "nowhere"), "balance.entries")


def test_classes_are_found_in_singular_and_plural() -> None:
    classes = ("cat", "fire truck", "bus")
    assert label_consistency.mentioned_classes("two Cats near a fire truck", classes) == [0, 1]
    assert label_consistency.mentioned_classes("buses and catalogues", classes) == [2]
    assert label_consistency.mentioned_classes("a dog", classes) == []


def test_rank_of_the_most_similar_mentioned_class() -> None:
    similarities = np.array([0.1, 0.4, 0.3, 0.4])
    for mentioned, expected in (([1], 1), ([2], 3), ([0], 4), ([0, 3], 1)):
        assert label_consistency.best_rank(similarities, mentioned) == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"clusters": {"epsilon": 0.1}}, "clusters needs an encoder"),
        ({"label_consistency": {"classes": ["cat", "dog"]}}, "label_consistency.classes needs an encoder"),
        ({"captioner": "there"}, "captioner needs an encoder"),
        ({"label_consistency": {"classes": ["cat"]}}, "at least two"),
        ({"clusters": {"count": 3}}, "no rule uses the clusters"),
        ({"clusters": {"epsilon": 1}}, "epsilon"),
        ({"balance": {"limit": 0}}, "limit"),
        ({"balance": {"entries": "file"}}, "set limit"),
        ({"min_entropy": 9}, "min_entropy: must be from 0 to 8, got 9"),
        ({"max_images_per_caption": 0}, "max_images_per_caption"),
        ({"max_words": 2, "min_words": 3}, "max_words"),
        ({"pii": "hide"}, "none of ignore, flag, remove, drop"),
    ],
)
def test_invalid_values_are_rejected(values: dict, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load(CurateConfig, {"curate": values}, "curate")
