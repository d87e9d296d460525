"""Run DPO and its control side by side, or skip both.

The control is fine-tuned on the preferred answers alone, with the same budget. DPO is worth its cost only if it beats
that control.
"""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from components.align.config import AlignConfig
from vlmflow.artifacts import checkpoint
from vlmflow.artifacts.dataset import Dataset
from vlmflow.config import recipes
from vlmflow.runtime import left_out
from vlmflow.runtime.process import configure_logging, start_method
from vlmflow.training.launcher import run_distributed


def align(
    start: str | Path, preferences: str | Path, model: str | Path, control: str | Path, recipe: str, section: str
) -> None:
    """Train the aligned model and its control at the same time, in one process each.

    Both outputs are copies of the incoming model when the recipe has no such section or the data has fewer than
    `min_pairs` pairs. The reason goes to the log and to the checkpoints' cards.
    """
    start, preferences, model, control = (Path(path) for path in (start, preferences, model, control))
    config = recipes.load(AlignConfig, recipe, section)
    if reason := _reason_to_skip(preferences, config, recipe, section):
        for out in (model, control):
            checkpoint.copy_unchanged(start, out, reason)
        return
    from components.align import dpo  # TRL: imported once, before the two processes start

    with ProcessPoolExecutor(2, mp_context=get_context(start_method())) as pool:
        jobs = [
            pool.submit(_run_one, step, train, start, preferences, config, out)
            for step, train, out in (("align", dpo.train_dpo, model), ("control", dpo.train_control, control))
        ]
        for job in jobs:
            job.result()


def _reason_to_skip(preferences: Path, config: AlignConfig, recipe: str, section: str) -> str:
    """Why no alignment is possible; empty if it is."""
    if recipes.section(recipe, section) is None:
        return f"the recipe has no section {section!r}"
    if reason := left_out.reason(preferences):
        return reason
    data = Dataset(preferences, "preferences")
    if len(data) >= config.min_pairs:
        return ""
    reason = f"{len(data)} preference pairs are fewer than min_pairs {config.min_pairs}"
    return str(data.card.notes.get("skipped", reason))


def _run_one(
    step: str, train: Callable[..., None], start: Path, preferences: Path, config: AlignConfig, out: Path
) -> None:
    """In a process of its own: one of the two trainings."""
    configure_logging()
    run_distributed(step, train, config.training, start, preferences, config, out=out)
