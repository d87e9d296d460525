"""Pairs per second of the whole curation step, against a plain script and against `datasets.map`.

    python -m benchmarks.data                       # 10,000 pairs of 512 px; 10,000 and 100,000 of 96 px
    python -m benchmarks.data --rows 1000 --growth 1000 5000

All three process the same rows with the same encoder, in the same run, and write the kept rows as parquet:

- `plain`: a simple script with Pillow and pandas: the DataComp basic rules and the CLIP score
- `datasets`: the same rules in `datasets.map`
- `vlmflow`: `curate` with the same thresholds; also finds duplicates and blank images, writes ledger and funnel

The encoder is a small CLIP with random weights. Its time is the same for all three and is reported separately.
None of them filters by language.
"""

import argparse
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlmflow.runtime.process import limit_threads

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "data.json"
MIN_SIDE, MAX_ASPECT, MIN_WORDS, MIN_CHARACTERS, FRACTION = 200, 3.0, 3, 6, 0.3
BATCH = 256
REPEATED = 0.1  # share of pairs that repeat an earlier image, recompressed
SMALL = 96  # side in pixels of the images that measure growth with the number of rows


# -- data


def draw(seed: int, side: int, quality: int = 85) -> bytes:
    """Draw a JPEG of soft shapes with noise, with about the file size of a photograph."""
    import io

    import numpy as np
    from PIL import Image, ImageDraw

    generator = np.random.default_rng(seed)
    width, height = side, int(side * generator.uniform(0.55, 1.0))
    patches = generator.integers(0, 256, (9, 12, 3), dtype=np.uint8)
    image = Image.fromarray(patches).resize((width, height), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(image)
    for _ in range(12):
        x, y, radius = (int(generator.integers(*span)) for span in ((0, width), (0, height), (8, max(9, side // 3))))
        colour = tuple(generator.integers(0, 256, 3).tolist())
        pen.ellipse((x - radius, y - radius // 2, x + radius, y + radius // 2), fill=colour)
    noise = generator.integers(-6, 7, (height, width), dtype=np.int16)[..., None]
    pixels = np.clip(np.asarray(image).astype(np.int16) + noise, 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def generate_pairs(count: int, side: int) -> Iterator[dict[str, Any]]:
    """Generate `count` pairs: some captions are too short, some images are repeated or too small for the rules."""
    import numpy as np

    from vlmflow.artifacts.dataset import uid

    generator = np.random.default_rng(0)
    words = "red old small wooden quiet river bridge market two people under tall trees near the station"
    for i in range(count):
        chance = generator.random()
        repeats = chance < REPEATED and i > 0
        number = int(generator.integers(0, i)) if repeats else i
        size = side // 4 if 0.1 < chance < 0.15 else side
        image = draw(number, size, 75 if repeats else 85)
        length = 1 if 0.15 < chance < 0.2 else int(generator.integers(3, 14))
        caption = " ".join(generator.choice(words.split(), length)) + (f" {i}" if length > 1 else "")
        row = {"uid": uid(image, caption), "image": image, "caption": caption, "width": size, "height": 0}
        yield {**row, "source": "", "licence": "", "split": "train", "label": "", "regions": [], "lines": []}


def prepare_pairs(folder: Path, count: int, side: int) -> Path:
    """Return the dataset of `count` pairs; write it if it does not exist."""
    from vlmflow.artifacts import dataset

    path = folder / f"pairs-{count}-{side}"
    if not (path / "card.json").exists():
        dataset.write(path, "pairs", generate_pairs(count, side))
    return path


def prepare_encoder(folder: Path) -> Path:
    """Return a small CLIP with random weights for images of 224 px; write it if it does not exist."""
    path = folder / "clip"
    if (path / "config.json").exists():
        return path
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import CLIPConfig, CLIPModel, CLIPProcessor, PreTrainedTokenizerFast
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    letters = ["<pad>", "<s>", "</s>", "<unk>", *"abcdefghijklmnopqrstuvwxyz0123456789"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(letters)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**small, "vocab_size": len(letters), "max_position_embeddings": 32, "eos_token_id": 2, "pad_token_id": 0}
    torch.manual_seed(0)
    vision = {**small, "image_size": 224, "patch_size": 32}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=32)).save_pretrained(path)
    CLIPProcessor(CLIPImageProcessorPil(), fast).save_pretrained(path)
    return path


# -- candidates: each takes the dataset, the encoder and the number of processes, and returns the number of kept rows

_clock = multiprocessing.Value("d", 0.0)  # seconds in the encoder, summed over processes; forked workers share it


def time_encoder(model: Any) -> Any:
    """Add the time of the model's two embedding methods to `_clock`; return the model."""

    def timed(function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                with _clock.get_lock():
                    _clock.value += time.perf_counter() - start

        return call

    model.get_image_features = timed(model.get_image_features)
    model.get_text_features = timed(model.get_text_features)
    return model


def _load_clip(model: Path) -> Any:
    from transformers import CLIPModel, CLIPProcessor

    encoder = CLIPModel.from_pretrained(model, trust_remote_code=False).eval()
    return time_encoder(encoder), CLIPProcessor.from_pretrained(model, trust_remote_code=False)


def _passes_basic_rules(data: bytes, caption: str) -> bool:
    """Apply DataComp's basic rules without the language rule. Source: Gadre et al. 2023, section 3.3."""
    import io

    from PIL import Image

    try:
        width, height = Image.open(io.BytesIO(data)).size  # reads the header only
    except Exception:
        return False
    short, long = min(width, height), max(width, height)
    words = len(caption.split()) >= MIN_WORDS and len(caption) >= MIN_CHARACTERS
    return words and short >= MIN_SIDE and long <= MAX_ASPECT * short


def _cosines(clip: Any, data: list[bytes], captions: list[str]) -> list[float]:
    import io

    import torch
    from PIL import Image

    model, processor = clip
    images = [Image.open(io.BytesIO(d)).convert("RGB") for d in data]
    batch = processor(text=captions, images=images, return_tensors="pt", padding=True, truncation=True, max_length=32)
    with torch.inference_mode():
        image = model.get_image_features(pixel_values=batch["pixel_values"]).pooler_output
        text = model.get_text_features(batch["input_ids"], batch["attention_mask"]).pooler_output
    return torch.cosine_similarity(image, text).tolist()


_clips: list[Any] = []  # the encoder of this process, once loaded


def _score_row_groups(shard: Path, groups: list[int], model: Path) -> Any:
    import pyarrow.parquet as pq

    if not _clips:
        _clips.append(_load_clip(model))
    table = pq.ParquetFile(shard).read_row_groups(groups).to_pandas()
    table = table[
        [_passes_basic_rules(image["bytes"], text) for image, text in zip(table.image, table.caption, strict=True)]
    ]
    scores = []
    for start in range(0, len(table), BATCH):
        part = table.iloc[start : start + BATCH]
        scores += _cosines(_clips[0], [image["bytes"] for image in part.image], part.caption.tolist())
    return table.assign(score=scores)


def curate_with_pandas(data: Path, model: Path, out: Path, processes: int) -> int:
    """Curate with Pillow and pandas; a pool distributes the row groups of the shards."""
    import pandas as pd
    import pyarrow.parquet as pq

    parts = [
        (shard, [group], model)
        for shard in sorted(data.glob("*.parquet"))
        for group in range(pq.ParquetFile(shard).num_row_groups)
    ]
    if processes == 1:
        tables = [_score_row_groups(*part) for part in parts]
    else:
        with multiprocessing.get_context("fork").Pool(processes) as pool:
            tables = pool.starmap(_score_row_groups, parts, chunksize=1)
    table = pd.concat(tables)
    table = table.nlargest(int(FRACTION * len(table)), "score")
    table.to_parquet(out / "kept.parquet")
    return len(table)


def curate_with_datasets(data: Path, model: Path, out: Path, processes: int) -> int:
    """Curate with `datasets`: filter, map with the encoder, select."""
    import datasets
    import numpy as np

    datasets.disable_progress_bars()
    rows: Any = datasets.load_dataset("parquet", data_files=str(data / "*.parquet"), cache_dir=str(out))["train"]
    rows = rows.cast_column("image", datasets.Image(decode=False))
    workers = None if processes == 1 else processes
    rows = rows.filter(
        lambda batch: [
            _passes_basic_rules(i["bytes"], c) for i, c in zip(batch["image"], batch["caption"], strict=True)
        ],
        batched=True,
        num_proc=workers,
    )

    def score(batch: dict[str, list[Any]]) -> dict[str, list[float]]:
        if not _clips:
            _clips.append(_load_clip(model))
        return {"score": _cosines(_clips[0], [image["bytes"] for image in batch["image"]], batch["caption"])}

    rows = rows.map(score, batched=True, batch_size=BATCH, num_proc=workers)
    scores = np.array(rows["score"])
    rows = rows.select(np.argsort(-scores, kind="stable")[: int(FRACTION * len(scores))])
    rows.to_parquet(str(out / "kept.parquet"))
    return len(rows)


def curate_with_vlmflow(data: Path, model: Path, out: Path, processes: int, min_side: int = MIN_SIDE) -> int:
    """Run the curation step with the thresholds of the other candidates."""
    from components.curate.config import CurateConfig
    from components.curate.curation import curate
    from vlmflow.config.recipes import load
    from vlmflow.inference import loading

    load_model = loading.load
    loading.load = lambda path: _time_loaded(load_model(path))
    values = {
        "min_side": min_side,
        "max_aspect": MAX_ASPECT,
        "min_words": MIN_WORDS,
        "min_characters": MIN_CHARACTERS,
        "score": {"model": str(model), "fraction": FRACTION, "batch_size": BATCH},
        "processes": processes,
    }
    curated, ledger, funnel, scorer = (out / name for name in ("curated", "ledger", "funnel.html", "scorer"))
    written = curate(data, curated, ledger, funnel, scorer, load(CurateConfig, {"curate": values}, "curate"))
    return len(written)


def _time_loaded(loaded: Any) -> Any:
    time_encoder(loaded.model)
    return loaded


CANDIDATES = {"plain": curate_with_pandas, "datasets": curate_with_datasets, "vlmflow": curate_with_vlmflow}


# -- measurement


def run_in_subprocess(name: str, data: Path, model: Path, processes: int, *options: str) -> dict[str, Any]:
    """Run `measure` for one candidate in a new process and return its result."""
    command = [sys.executable, "-m", "benchmarks.data", "--candidate", name, "--processes", str(processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": "", "HF_HUB_OFFLINE": "1"}
    process = subprocess.run(
        [*command, "--data", str(data), "--model", str(model), *options],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=7200,
    )
    if process.returncode:
        raise SystemExit(f"{name} with {processes} processes failed:\n{process.stderr[-3000:]}")
    return json.loads(process.stdout.splitlines()[-1])


def measure(name: str, data: Path, model: Path, processes: int, **options: int) -> dict[str, Any]:
    """Run one candidate in this process: time, encoder time, and peak memory including its workers."""
    import tempfile

    # Import everything before the clock starts, so that no candidate is charged for imports.
    import datasets  # noqa: F401
    import pandas  # noqa: F401
    from transformers import CLIPModel, CLIPProcessor  # noqa: F401

    import vlmflow.inference.loading  # noqa: F401
    from components.curate import curation  # noqa: F401
    from vlmflow.artifacts.dataset import Dataset
    from vlmflow.runtime.resource_meter import ResourceMeter

    with tempfile.TemporaryDirectory(dir=data.parent) as folder:
        meter, start = ResourceMeter(), time.perf_counter()
        kept = CANDIDATES[name](data, model, Path(folder), processes, **options)
        seconds = time.perf_counter() - start
        peak = meter.stop()
    rows = len(Dataset(data))
    encoder_seconds = _clock.value / processes
    return {
        "name": name,
        "rows": rows,
        "processes": processes,
        "seconds": round(seconds, 2),
        "encoder_seconds": round(encoder_seconds, 2),
        "pairs_per_second": round(rows / seconds, 1),
        "pairs_per_second_without_encoder": round(rows / (seconds - encoder_seconds), 1),
        "peak_mb": peak,
        "kept": kept,
    }


def describe_hardware() -> str:
    """Describe the processor, its number of cores and the memory."""
    import psutil

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = {line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")}
    processor = ", ".join(sorted(names)) or platform.machine()
    return f"{processor}, {os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GB"


def main() -> None:
    """Generate the data, measure all candidates, print the table and write `results/data.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--side", type=int, default=512, help="width of the images in pixels")
    parser.add_argument("--rounds", type=int, default=3, help="runs per candidate; the median run is reported")
    parser.add_argument("--growth", type=int, nargs=2, default=[10_000, 100_000], help="row counts of small images")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "benchmark-data")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--candidate", help=argparse.SUPPRESS)
    parser.add_argument("--processes", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--min-side", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    limit_threads()
    if args.candidate:
        options = {} if args.min_side is None else {"min_side": args.min_side}
        print(json.dumps(measure(args.candidate, args.data, args.model, args.processes, **options)))  # noqa: T201
        return
    model, data = prepare_encoder(args.folder), prepare_pairs(args.folder, args.rows, args.side)
    # Alternate the candidates, so that a temporary slowdown of the machine affects all.
    turns = [(name, n) for _ in range(args.rounds) for n in (1, 2) for name in CANDIDATES]
    runs = select_median_runs([run_in_subprocess(name, data, model, n) for name, n in turns])
    small = ("--min-side", str(SMALL // 2))
    datasets = [prepare_pairs(args.folder, count, SMALL) for count in args.growth]
    grown = [run_in_subprocess("vlmflow", data, model, 1, *small) for data in datasets]
    report(runs, grown, args.side, args.out)


def select_median_runs(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Select the run with the median time per candidate and number of processes, with the times of all runs."""
    selected = []
    for candidate in dict.fromkeys((run["name"], run["processes"]) for run in runs):
        own = sorted((r for r in runs if (r["name"], r["processes"]) == candidate), key=lambda r: r["seconds"])
        selected.append({**own[len(own) // 2], "seconds_of_all": [run["seconds"] for run in own]})
    return selected


def report(runs: list[dict[str, Any]], grown: list[dict[str, Any]], side: int, out: Path) -> None:
    """Print the table, and write the figures and the hardware to `out`."""
    from rich.console import Console
    from rich.table import Table

    names = ("name", "rows", "processes")
    table = Table(title=f"{runs[0]['rows']:,} pairs, {side} px; then vlmflow on {SMALL} px")
    columns = ("pairs_per_second", "pairs_per_second_without_encoder", "seconds", "encoder_seconds", "peak_mb", "kept")
    for column in names + columns:
        table.add_column(column.replace("_", " "), justify="left" if column == "name" else "right")
    for run in runs + grown:
        table.add_row(run["name"], *(f"{run[column]:,}" for column in names[1:] + columns))
    ratios = {}
    for processes in (1, 2):
        speed = {r["name"]: r["pairs_per_second_without_encoder"] for r in runs if r["processes"] == processes}
        ratios[str(processes)] = round(speed.pop("vlmflow") / max(speed.values()), 2)
    small, large = grown
    growth = {
        "rows": large["rows"] / small["rows"],
        "seconds": round(large["seconds"] / small["seconds"], 2),
        "peak_mb": round(large["peak_mb"] / small["peak_mb"], 2),
    }
    console = Console()
    console.print(table)
    console.print(f"vlmflow / faster of the others, without the encoder, by number of processes: {ratios}")
    console.print(
        f"{growth['rows']:.0f} times the rows: {growth['seconds']} times the time, {growth['peak_mb']} times the memory"
    )
    console.print(describe_hardware())
    out.parent.mkdir(parents=True, exist_ok=True)
    content = {"side": side, "runs": runs, "ratios": ratios, "grown": grown, "growth": growth}
    content = {"hardware": describe_hardware(), **content}
    out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
