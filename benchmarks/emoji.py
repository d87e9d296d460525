"""Compositional retrieval: find the names of a kind of emoji that is absent from training, among all names.

    python -m benchmarks.emoji FOLDER                         # hold out all women; train with recipes/emoji.yaml
    python -m benchmarks.emoji FOLDER --hold-out ""           # hold out a random twentieth instead
    python -m benchmarks.emoji FOLDER --set pretrain.training.seconds=60

FOLDER holds `pairs.jsonl` with `image`, `caption` and `aliases`, for example images of googlefonts/noto-emoji with
the names of github/gemoji. A held-out kind is every image whose name begins with a given word. With "woman", training
has no "woman running" but has "man running" and "person running", and "woman" occurs in other names (pregnant woman,
family). So the model has to compose a name from the meanings of its parts. Aliases are additional captions of the
training images.

R@10 is the share of held-out images whose own name is among the ten nearest of all names, including those of training.
"""

import argparse
import json
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from vlmflow.config import recipes
from vlmflow.runtime.process import configure_logging, limit_threads

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "recipes" / "emoji.yaml"


def index(folder: Path, out: Path, hold_out: str) -> list[dict[str, Any]]:
    """Write `out/index.jsonl` with the captions and the split of every image; return the rows of `folder`.

    Args:
        hold_out: the first word of the held-out names, or "" to hold out one in twenty, chosen by the name's checksum.
    """
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text(encoding="utf-8").split("\n") if line]
    with (out / "index.jsonl").open("w", encoding="utf-8") as file:
        for row in rows:
            name = row["caption"]
            test = name.replace(":", "").split()[0] == hold_out if hold_out else zlib.crc32(name.encode()) % 20 == 0
            others = [] if test else [alias.replace("_", " ") for alias in row["aliases"]]
            captions = list(dict.fromkeys([name, *others]))
            split = "test" if test else "train"
            line = {"image": str((folder / row["image"]).resolve()), "captions": captions, "split": split}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    return rows


def train(out: Path, sections: dict[str, Any]) -> tuple[Path, Path]:
    """Ingest, curate and pretrain in `out` with the recipe; return the paths of the pairs and the model."""
    from components.curate.config import CurateConfig
    from components.curate.curation import curate
    from components.ingest.config import IngestConfig
    from components.ingest.ingestion import ingest
    from vlmflow.training.pretraining.config import PretrainConfig
    from vlmflow.training.pretraining.training import pretrain

    sections = recipes.override(sections, [f"ingest.path={out}"])
    ingest(recipes.load(IngestConfig, sections, "ingest"), out / "raw")
    curation = recipes.load(CurateConfig, sections, "curate")
    curate(out / "raw", out / "pairs", out / "ledger", out / "funnel.html", out / "scorer", curation)
    config = recipes.load(PretrainConfig, sections, "pretrain")
    pretrain(pairs=out / "pairs", conversations=None, out=out / "model", section=config)
    return out / "pairs", out / "model"


def recall(model: Path, pairs: Path, names: list[str], top: int = 10, resamples: int = 2000) -> dict[str, Any]:
    """Measure R@`top` of the test images among all `names`, with a 95% bootstrap interval over the images."""
    from vlmflow.artifacts.dataset import Dataset
    from vlmflow.images.decoding import decode
    from vlmflow.inference.embedding import embed_images, embed_texts
    from vlmflow.inference.loading import load

    own: dict[bytes, int] = {}
    for row in Dataset(pairs, "pairs").rows(["image", "caption", "split"]):
        if row["split"] == "test" and row["caption"] in names:
            own.setdefault(row["image"]["bytes"], names.index(row["caption"]))
    loaded = load(model)
    cosines = embed_images(loaded, [decode(image) for image in own]) @ embed_texts(loaded, names).T
    targets = cosines[np.arange(len(own)), list(own.values())]
    ranks = (cosines > targets[:, None]).sum(1)
    hits = ranks < top
    resampled = hits[np.random.default_rng(0).integers(0, len(hits), (resamples, len(hits)))].mean(1)
    low, high = np.quantile(resampled, (0.025, 0.975))
    values = {"images": len(own), "names": len(names), f"R@{top}": hits.mean(), "low": low, "high": high}
    return {name: round(float(value), 4) for name, value in {**values, "median rank": 1 + np.median(ranks)}.items()}


def main() -> None:
    """Index, train, evaluate and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--hold-out", default="woman", help="first word of the held-out names")
    parser.add_argument("--set", action="append", default=[], help="override a recipe value: section.key=value")
    args = parser.parse_args()
    limit_threads()
    configure_logging()
    from rich.console import Console

    sections = recipes.override(recipes.parse(RECIPE), args.set)
    with tempfile.TemporaryDirectory() as folder:
        rows = index(args.folder, Path(folder), args.hold_out)
        start = time.monotonic()
        pairs, model = train(Path(folder), sections)
        seconds = time.monotonic() - start
        result = recall(model, pairs, [row["caption"] for row in rows])
    Console(highlight=False).print_json(data={"held out": args.hold_out, **result, "wall seconds": round(seconds, 1)})


if __name__ == "__main__":
    main()
