"""The body of the three fine-tuning steps: captioning, grounding and OCR."""

from pathlib import Path

from vlmflow.artifacts import checkpoint
from vlmflow.artifacts.dataset import Dataset
from vlmflow.config import recipes
from vlmflow.training.finetuning.config import FineTuneConfig
from vlmflow.training.launcher import run_distributed


def run_stage(model_in: str | Path, conversations: str | Path, out: str | Path, recipe: str, section: str) -> None:
    """Fine-tune the model at `model_in` by the recipe's `section` and write a checkpoint to `out`.

    The stage is skipped, and the model copied unchanged, when the recipe has no such section or the training split has
    no conversation of the section's task. The reason goes to the log and to the checkpoint's card.
    """
    if recipes.section(recipe, section) is None:
        checkpoint.copy_unchanged(model_in, out, f"the recipe has no section {section!r}")
        return
    config = recipes.load(FineTuneConfig, recipe, section)
    tasks = Dataset(conversations, "conversations").table(["task", "split"]).to_pylist()
    if {"task": config.task, "split": "train"} not in tasks:
        checkpoint.copy_unchanged(model_in, out, f"the data has no training conversation of task {config.task!r}")
        return
    from vlmflow.training.finetuning.sft import train  # TRL takes seconds to import

    arguments = (Path(model_in), Path(conversations), config, section)
    run_distributed(section, train, config.training, *arguments, out=Path(out))
