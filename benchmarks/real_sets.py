"""Recipes on real data sets: one table of their figures, with intervals, controls and minutes.

    python -m benchmarks.real_sets FOLDER                      # all sets; write results/real_sets.json
    python -m benchmarks.real_sets FOLDER --only cards nlvr
    python -m benchmarks.real_sets --table                     # print the table of the last results

FOLDER holds a folder for each set, with images and an index of JSON lines:

- `cards`: `boxes.jsonl` with `image`, `boxes` (label and xyxy pixels) and `part` (train or test)
- `receipts`: `lines.jsonl` with `image` and `lines` (text and xyxy pixels)
- `nlvr`: `sentences.jsonl` with `image`, `sentence`, `label` and `identifier`
- `emoji`: `pairs.jsonl` with `image`, `caption` and `aliases` (see `benchmarks/emoji.py`)
- `textbooks`: `pairs.jsonl` with `image` and `alt`

The steps run one after the other in this process. Permutations of a scene of NLVR stay in one split, and so do the
captions of an emoji.
"""

import argparse
import json
import os
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

from benchmarks import emoji
from vlmflow.config import recipes
from vlmflow.runtime.process import configure_logging, limit_threads

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "real_sets.json"
RECIPES = {name: ROOT / "recipes" / "real" / f"{name}.yaml" for name in ("cards", "receipts", "nlvr", "textbooks")}
RECIPES["emoji"] = ROOT / "recipes" / "emoji.yaml"
UNTRAINED = ("retrieval", "zero-shot")  # of a recipe whose `pretrain` only sets the sizes
STAGES = ("caption", "ground", "ocr")


def prepare(name: str, folder: Path, out: Path) -> list[str]:
    """Write the set's split into an index in `out`, where the set itself has none; return the recipe's changes."""
    source = folder / name
    if name == "emoji":
        emoji.index(source, out, hold_out="")
        return [f"ingest.path={out}"]
    if name != "nlvr":
        return [f"ingest.path={source}"]
    with (out / "sentences.jsonl").open("w", encoding="utf-8") as file:
        for line in (source / "sentences.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            scene = row["identifier"].rsplit("-", 1)[0]
            split = "test" if zlib.crc32(scene.encode()) % 5 == 0 else "train"
            image = str((source / row["image"]).resolve())
            kept = {"image": image, "sentence": row["sentence"], "label": row["label"], "split": split}
            file.write(json.dumps(kept) + "\n")
    return [f"ingest.path={out}", "ingest.columns.split=split"]


def run(name: str, folder: Path, changes: list[str]) -> dict[str, Any]:
    """Run the steps of the set's recipe and return its scores, with wall and CPU minutes."""
    from components.curate.config import CurateConfig
    from components.curate.curation import curate
    from components.ingest.config import IngestConfig
    from components.ingest.ingestion import ingest
    from components.instructions.config import InstructionConfig
    from components.instructions.conversations import build_conversations
    from vlmflow.artifacts.dataset import Dataset
    from vlmflow.evaluation.config import EvaluateConfig
    from vlmflow.evaluation.evaluate import evaluate
    from vlmflow.training.finetuning.config import FineTuneConfig
    from vlmflow.training.finetuning.sft import train
    from vlmflow.training.launcher import run_distributed
    from vlmflow.training.pretraining.config import PretrainConfig
    from vlmflow.training.pretraining.training import pretrain

    wall, cpu = time.monotonic(), sum(os.times()[:4])
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary)
        sections = recipes.override(recipes.parse(RECIPES[name]), [*prepare(name, folder, out), *changes])
        ingest(recipes.load(IngestConfig, sections, "ingest"), out / "raw")
        curation = recipes.load(CurateConfig, sections, "curate")
        curate(out / "raw", out / "pairs", out / "ledger", out / "funnel.html", out / "scorer", curation)
        questions = recipes.load(InstructionConfig, sections, "instructions")
        build_conversations(out / "pairs", out / "questions", questions)
        model = out / "pretrain"
        section = recipes.load(PretrainConfig, sections, "pretrain")
        pretrain(pairs=out / "pairs", conversations=out / "questions", out=model, section=section)
        for stage in STAGES:
            if recipes.section(sections, stage) is not None:
                tuning = recipes.load(FineTuneConfig, sections, stage)
                arguments = (model, out / "questions", tuning, stage)
                model = out / stage
                run_distributed(stage, train, tuning.training, *arguments, out=model)
        splits = Dataset(out / "pairs").table(["split"])["split"].to_pylist()
        scores = evaluate(
            model=model,
            pairs=out / "pairs",
            conversations=out / "questions",
            out=out / "scores",
            stage=name,
            section=recipes.load(EvaluateConfig, sections, "evaluate"),
        )
    return {
        "recipe": str(RECIPES[name].relative_to(ROOT)),
        "changes": changes,
        "training pairs": splits.count("train"),
        "test pairs": splits.count("test"),
        "wall minutes": round((time.monotonic() - wall) / 60, 1),
        "cpu minutes": round((sum(os.times()[:4]) - cpu) / 60, 1),
        "load average": round(os.getloadavg()[1], 1),
        "capabilities": {
            capability: {
                "metric": value["metric"],
                "n": value["n"],
                **{key: round(value[key], 3) for key in ("value", "low", "high")},
                **{control: round(found["value"], 3) for control, found in value["controls"].items()},
                "secondary": {
                    key: {bound: round(number, 3) for bound, number in more.items()}
                    for key, more in value["secondary"].items()
                },
            }
            for capability, value in scores["capabilities"].items()
            if section.training.max_steps or capability not in UNTRAINED
        },
    }


def table(results: dict[str, Any]) -> str:
    """The results as a Markdown table, a row for each capability."""
    head = ["set", "train / test", "capability", "n", "value", "95% interval", "blank", "shuffled", "CPU minutes"]
    rows = [head, ["---"] * len(head)]
    for name, found in results["sets"].items():
        for i, (capability, value) in enumerate(found["capabilities"].items()):
            first = [name, f"{found['training pairs']} / {found['test pairs']}"] if i == 0 else ["", ""]
            interval = f"{value['low']:.3f}–{value['high']:.3f}"
            numbers = [f"{value[key]:.3f}" for key in ("value", "blank", "shuffled")]
            minutes = f"{found['cpu minutes']}" if i == 0 else ""
            title = f"{capability} ({value['metric']})"
            rows.append([*first, title, str(value["n"]), numbers[0], interval, *numbers[1:], minutes])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    """Run the sets, add them to the results and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="the folder of the sets")
    parser.add_argument("--only", nargs="+", choices=sorted(RECIPES), help="sets to run; all by default")
    parser.add_argument("--set", action="append", default=[], help="override a recipe value: section.key=value")
    parser.add_argument("--table", action="store_true", help="print the table of the last results")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    limit_threads()
    configure_logging()
    from benchmarks.pretrain import describe_hardware

    results = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {"sets": {}}
    if args.table and not results["sets"]:
        parser.error(f"{args.out}: no results yet; run the sets first")
    if not args.table:
        if args.folder is None:
            parser.error("name the folder of the sets, or print the last results with --table")
        for name in args.only or RECIPES:
            if not (args.folder / name).is_dir():
                parser.error(f"{args.folder / name}: no such folder; give the folder that contains {name}")
            results["sets"][name] = {**run(name, args.folder, args.set), "hardware": describe_hardware()}
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(table(results))  # noqa: T201  the output of the command


if __name__ == "__main__":
    main()
