"""The generated parts of the documentation: `make docs` writes them, a test checks that they are up to date."""

import json
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from components.learning_check.comparison import LOSS
from pipelines import reference
from pipelines.catalog import PIPELINES, load_pipeline
from pipelines.step_cli import names
from pipelines.zoo import RECIPES, measure
from vlmflow.runtime.code_hash import ROOT

# fmt: off
ORDER = [
    "ingest", "validate", "curate", "instructions", "fetch", "pretrain", "caption", "ground", "ocr", "preferences",
    "align", "evaluate", "gate", "register", "deploy", "report", "learning_check", "ablate", "data_ablation", "sweep",
    "base_model", "champion", "monitor", "plan", "finish",
]
# fmt: on
RESULTS = ROOT / "benchmarks" / "results" / "zoo"


def steps() -> str:
    """Return the table of steps, in the order in which the end-to-end pipeline runs them, with their descriptions."""
    tasks = {task.replace("-", "_") for name in PIPELINES for task in load_pipeline(name).pipeline_spec.root.dag.tasks}
    tasks |= {"plan", "finish"}  # `on_cluster` adds them to every pipeline
    assert sorted(ORDER) == names() and set(ORDER) <= tasks, "a step is missing from this order"
    rows = ["| step | what it does |", "|---|---|"]
    for name in ORDER:
        description = getattr(import_module(f"components.{name}.component"), name).component_spec.description
        rows.append(f"| [`{name}`]({name}) | {description.strip()} |")
    return "\n".join(rows) + "\n"


def results() -> str:
    """Return the results of `make zoo`: a row for each family and capability, and a figure for each family."""
    rows = ["| family | capability | trained | untrained | control | core-seconds |", "|---|---|---|---|---|---|"]
    figures = []
    for found in _found():
        for name, value in found["capabilities"].items():
            rows.append(_row(found, name, value))
        figure = RESULTS / f"{found['family']}.png"
        if figure.exists():
            figures.append(f"\n### {found['family']}\n\n![{found['family']}](../{figure.relative_to(ROOT)})\n")
    return "\n".join(rows) + "\n" + "".join(figures)


def _found() -> Iterator[dict[str, Any]]:
    from models.zoo import ZOO

    for name in ZOO:
        file = RESULTS / f"{name}.json"
        if file.exists():
            yield json.loads(file.read_text(encoding="utf-8"))


def _row(found: dict[str, Any], name: str, value: dict[str, Any]) -> str:
    trained, first = value["trained"], name == next(iter(found["capabilities"]))
    better = all(value[f"over_{other}"]["verdict"] == "better" for other in ("untrained", "shuffled"))
    metric = f"{name} ({value['metric']})" if name != LOSS else name
    cells = [
        found["family"] if first else "",
        metric + ("" if value["higher_is_better"] else " ↓") + ("" if better else " †"),
        f"{trained['value']:.3f} [{trained['low']:.3f}, {trained['high']:.3f}]",
        f"{value['untrained']['value']:.3f}",
        f"{value['shuffled']['value']:.3f}",
        f"{found['core_seconds']['trained']:.0f}" if first else "",
    ]
    return "| " + " | ".join(cells) + " |"


def sizes() -> str:
    """Return parameters and memory of each family's recipe at the paper's scale."""
    rows = ["| recipe | parameters | memory to train |", "|---|---|---|"]
    for place in sorted((RECIPES / "large").glob("*.yaml")):
        found = measure(place.stem, large=True)
        path = place.relative_to(ROOT)
        rows.append(f"| [`{path}`](../{path}) | {found['parameters']:,} | {found['training_gib']:.2f} GiB |")
    return "\n".join(rows) + "\n"


GENERATED = {"components/README.md": {"steps": steps}, "docs/zoo.md": {"results": results, "sizes": sizes}}


def updated(file: str) -> str:
    """Return the text of `file` with its generated parts rewritten."""
    text = (ROOT / file).read_text(encoding="utf-8")
    for part, write in GENERATED[file].items():
        place = re.search(rf"<!-- {part}: [^\n]*-->\n().*?()<!-- /{part} -->", text, re.DOTALL)
        assert place is not None, f"{file}: no marker for the generated part {part!r}"
        text = text[: place.start(1)] + write() + text[place.start(2) :]
    return text


def main() -> None:
    """Write the generated parts and files."""
    for file in GENERATED:
        Path(ROOT / file).write_text(updated(file), encoding="utf-8")
    for file, write in reference.FILES.items():
        Path(ROOT / file).parent.mkdir(parents=True, exist_ok=True)
        Path(ROOT / file).write_text(write(), encoding="utf-8")


if __name__ == "__main__":
    main()
