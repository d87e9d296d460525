"""Evaluation of a checkpoint on held-out data: all its capabilities, with intervals and controls.

1. Collect the test split's captions, labels and questions (`suites.py`).
2. Measure each capability that the model's abilities and the data allow (`capabilities.py`, `masked.py`).
3. Measure it again with blank images and with each question's image swapped for another one (`measurement.py`).
4. Write the scores artifact (`scores.py`).
"""

import logging
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmflow.artifacts.checkpoint import Checkpoint
from vlmflow.artifacts.dataset import Dataset
from vlmflow.artifacts.hashing import cache_key
from vlmflow.evaluation import scores as artifact
from vlmflow.evaluation.config import EvaluateConfig
from vlmflow.runtime.code_hash import code_hash
from vlmflow.runtime.process import start_method

if TYPE_CHECKING:
    from vlmflow.evaluation.measurement import SuiteResult

logger = logging.getLogger(__name__)


def evaluate(
    *,
    model: Path,
    pairs: Path,
    conversations: Path,
    out: Path,
    stage: str,
    section: EvaluateConfig,
    earlier: Path | None = None,
) -> dict[str, Any]:
    """Measure the checkpoint at `model` on the test split and write the scores artifact to `out`.

    Args:
        pairs: dataset of pairs; with another schema, nothing is measured on captions and labels.
        earlier: scores that are copied if they are of the same weights, on the same data, measured in the same way: a
            step that has nothing to train passes its model on. Any other artifact is ignored.
    """
    checkpoint = Checkpoint(model)
    way = section.model_dump(exclude={"processes"})
    identity = {
        "model": checkpoint.hash,
        "data": [Dataset(pairs).hash, Dataset(conversations, "conversations").hash],
        "method": cache_key(section=way, family=checkpoint.card.get("family"), code=code_hash(__name__)),
    }
    if earlier is not None and (copied := artifact.copy_if_same(earlier, out, stage, identity)):
        logger.info("the model is the one of stage %r: its scores are used", artifact.read_scores(earlier)["stage"])
        return copied
    results = _measure_suites(model, pairs, conversations, section)
    scores = {
        "stage": stage,
        **identity,
        "capabilities": {name: value for result in results for name, value in result.values.items()},
        "not_measured": {name: why for result in results for name, why in result.not_measured.items()},
        "seed": section.seed,  # of the choice of examples
        "confusion": next((result.confusion for result in results if result.confusion), None),  # zero-shot classes
    }
    examples = [example for result in results for example in result.examples]
    samples = [sample for result in results for sample in result.samples]
    artifact.write(out, scores, examples, samples)
    return scores


def _measure_suites(model: Path, pairs: Path, conversations: Path, section: EvaluateConfig) -> list["SuiteResult"]:
    """Measure all suites in their order, in this process or in several."""
    from vlmflow.evaluation.measurement import measure  # imports torch, which reading a recipe does not need

    if section.processes == 1:
        return list(measure(model, pairs, conversations, section, 0).values())
    with ProcessPoolExecutor(section.processes, mp_context=get_context(start_method())) as pool:
        jobs = [pool.submit(measure, model, pairs, conversations, section, i) for i in range(section.processes)]
        parts = [list(job.result().values()) for job in jobs]
    return [part[row] for row in range(len(parts[0])) for part in parts if row < len(part)]
