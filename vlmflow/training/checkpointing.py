"""Checkpoints while a training runs: one that is killed or loses a node is run again, and ends as if it had not been.

    with checkpoints(training, step="pretrain", data=data.hash, section=section.model_dump()) as kept:
        trainer = Trainer(args=TrainingArguments(**arguments(training, kept.folder)), callbacks=[*kept.callbacks])
        kept.train(trainer)

Weights, optimizer, schedule, random numbers and the loss curve go on from the newest whole checkpoint; the batches
that were seen are skipped. Checkpoints lie in VLMFLOW_CHECKPOINTS, a volume that every node mounts, or else beside the
runs of this machine, in a folder named by a hash of all that decides the outcome.
"""

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from vlmflow.runtime.step_cache import cache_key
from vlmflow.tracking import mlflow_run
from vlmflow.training.config import TrainingConfig

logger = logging.getLogger(__name__)

MARKER = "whole.json"  # written last: the names and sizes of all other files of a checkpoint


@contextmanager
def open_checkpoints(training: TrainingConfig, **what: Any) -> Iterator["Checkpoints"]:
    """The checkpoints of a training; removed when it has ended well. Without `training.save_every` there are none.

    Args:
        what: all that decides the outcome; the same again finds what a killed training left.
    """
    if not training.save_every:
        with tempfile.TemporaryDirectory() as folder:
            yield Checkpoints(Path(folder))
        return
    root = Path(os.environ.get("VLMFLOW_CHECKPOINTS") or mlflow_run.home() / ".checkpoints")
    kept = Checkpoints(root / cache_key(**what), training)
    yield kept
    if os.environ.get("RANK", "0") == "0":
        shutil.rmtree(kept.folder, ignore_errors=True)


class Checkpoints:
    """A folder of checkpoints, and what a trainer needs to write them and to go on from the newest.

    Attributes:
        folder: the trainer's `output_dir`.
        callbacks: to come after all others, since they say when a checkpoint is whole.
    """

    def __init__(self, folder: Path, training: TrainingConfig | None = None):
        self.folder, self.training = folder, training
        self.saving = SaveCallback(training.save_every) if training and training.save_every else None
        self.callbacks: list[TrainerCallback] = [self.saving] if self.saving else []

    def make_repeatable(self, collate: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """`collate` with random draws that a resumed training repeats; itself where nothing is saved."""
        if not (self.saving and self.training):
            return collate
        self.saving.draws = SeededCollator(collate, self.training.seed)
        return self.saving.draws

    def train(self, trainer: Trainer) -> None:
        """Train, from the newest whole checkpoint where there is one; each process calls it."""
        newest = [self._newest() if trainer.is_world_process_zero() and self.saving else None]
        if trainer.args.world_size > 1:
            dist.broadcast_object_list(newest)
        trainer.train(resume_from_checkpoint=newest[0])

    def _newest(self) -> str | None:
        """The newest whole checkpoint; what was half-written is removed."""
        found = sorted(self.folder.glob("checkpoint-*"), key=lambda path: -int(path.name.split("-")[1]))
        for path in found:
            if is_complete(path):
                logger.info("going on from step %s of %s", path.name.split("-")[1], path.parent)
                return str(path)
            logger.warning("%s: half-written, by a process that was killed meanwhile; skipped", path)
            shutil.rmtree(path, ignore_errors=True)
        return None


def is_complete(checkpoint: Path) -> bool:
    """Whether every file that was written to `checkpoint` is there, in its size."""
    try:
        sizes = json.loads((checkpoint / MARKER).read_text(encoding="utf-8"))
        return all((checkpoint / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


class SaveCallback(TrainerCallback):
    """Checkpoints between the first step and the last, each marked when all processes have written their part.

    The loss is logged with each, since what a killed process had summed up for the next line is gone with it.
    """

    def __init__(self, every: int):
        self.every = every
        self.draws: SeededCollator | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, train_dataloader: Any, **_: Any
    ) -> None:
        """Let the order of the rows and what is drawn for a batch go on too."""
        each, batches = args.gradient_accumulation_steps, len(train_dataloader)
        epoch, step = divmod(state.global_step, max(1, -(-batches // each)))
        # accelerate 1.15 does not reach the sampler of several processes through the batches that it skips.
        sampler = train_dataloader.batch_sampler
        while hasattr(sampler, "batch_sampler"):
            sampler = sampler.batch_sampler
        if hasattr(sampler.sampler, "set_epoch"):
            sampler.sampler.set_epoch(epoch)
        if self.draws:
            self.draws.batch_index, self.draws.process = epoch * batches + step * each, args.process_index

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """A checkpoint at the end would be of no use: what comes then is the model itself."""
        control.should_save = state.global_step % self.every == 0 and state.global_step < state.max_steps
        control.should_log = control.should_log or control.should_save

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Mark the checkpoint."""
        if args.world_size > 1:
            dist.barrier()
        if not state.is_world_process_zero:
            return
        checkpoint = Path(args.output_dir or "") / f"checkpoint-{state.global_step}"
        files = (path for path in checkpoint.rglob("*") if path.is_file() and path.name != MARKER)
        sizes = {str(path.relative_to(checkpoint)): path.stat().st_size for path in files}
        beside = checkpoint / f"{MARKER}.partial"
        beside.write_text(json.dumps(sizes, indent=1), encoding="utf-8")
        beside.replace(checkpoint / MARKER)


class SeededCollator:
    """A collator whose draws (crops, views, negatives) are decided by the seed and the number of the batch alone.

    Batches are made ahead of the step that takes them, so that the state of torch's generator at the time of a
    checkpoint says nothing of the batch to come.
    """

    def __init__(self, collate: Callable[[Any], Any], seed: int):
        self.collate, self.seed = collate, seed
        self.batch_index = self.process = 0

    def __call__(self, rows: Any) -> Any:
        entropy = np.random.SeedSequence([self.seed, self.process, self.batch_index])
        self.batch_index += 1
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(entropy.generate_state(1, np.uint64)[0]) >> 1)
            return self.collate(rows)
