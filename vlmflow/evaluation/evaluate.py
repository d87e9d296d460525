"""Evaluation of a checkpoint on held-out data: every capability it has, with intervals and controls.

1. Collect the test split's captions, labels and questions (`suites.py`).
2. Measure each capability that the model's abilities and the data allow (`capabilities.py`).
3. Measure it again with blank pictures and with every question's picture swapped for another's.
4. Write `scores.json` (values), `examples.parquet` (a score for each example) and `samples.json` (a few to look at).
"""

import json
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from vlmflow.artifacts.checkpoint import Checkpoint
from vlmflow.artifacts.dataset import Dataset
from vlmflow.evaluation.config import EvaluateConfig
from vlmflow.runtime.process import start_method

if TYPE_CHECKING:
    from vlmflow.evaluation.suites import SuiteResult


def evaluate(
    *, model: Path, pairs: Path, conversations: Path, out: Path, stage: str, section: EvaluateConfig
) -> dict[str, Any]:
    """Measure the checkpoint at `model` on the test split and write the scores artifact to `out`."""
    found = _measured(model, pairs, conversations, section)
    scores = {
        "stage": stage,
        "model": Checkpoint(model).hash,
        "data": [Dataset(pairs, "pairs").hash, Dataset(conversations, "conversations").hash],
        "capabilities": {name: value for part in found for name, value in part.values.items()},
        "confusion": next((part.confusion for part in found if part.confusion), None),  # of the zero-shot classes
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "scores.json").write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
    samples = [sample for part in found for sample in part.samples]
    (out / "samples.json").write_text(json.dumps(samples, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    schema = pa.schema([("capability", pa.string()), ("example", pa.string()), ("score", pa.float64())])
    examples = [example for part in found for example in part.examples]
    pq.write_table(pa.Table.from_pylist(examples, schema=schema), out / "examples.parquet")
    return scores


def _measured(model: Path, pairs: Path, conversations: Path, section: EvaluateConfig) -> list["SuiteResult"]:
    """Every suite in its order, measured here or by several processes."""
    from vlmflow.evaluation.suites import measure  # torch is not for reading a recipe

    if section.processes == 1:
        return list(measure(model, pairs, conversations, section, 0).values())
    with ProcessPoolExecutor(section.processes, mp_context=get_context(start_method())) as pool:
        jobs = [pool.submit(measure, model, pairs, conversations, section, i) for i in range(section.processes)]
        parts = [list(job.result().values()) for job in jobs]
    return [part[row] for row in range(len(parts[0])) for part in parts if row < len(part)]
