"""Checkpoints during a training, so that a run that was killed or lost a node resumes and gives the same result.

    with open_checkpoints(training, step="pretrain", data=data.hash, section=section.model_dump()) as checkpoints:
        args = TrainingArguments(**trainer_arguments(training, checkpoints.folder))
        trainer = Trainer(args=args, callbacks=[*callbacks, *checkpoints.callbacks])
        checkpoints.train(trainer)

Weights, optimizer, schedule, random state and loss curve resume from the newest complete checkpoint, and batches that
were trained on are skipped. Checkpoints are in VLMFLOW_CHECKPOINTS, or else on the volume VLMFLOW_SHARED, which a
pod's successor and every node mount, or else next to the runs of this machine. Their folder is named by a hash of
everything that determines the outcome.
"""

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from vlmflow.artifacts.checkpoint import load_weights
from vlmflow.artifacts.hashing import cache_key
from vlmflow.errors import ServiceError
from vlmflow.tracking import mlflow_store
from vlmflow.training.config import TrainingConfig

logger = logging.getLogger(__name__)

MARKER = "complete.json"  # written last: names and sizes of all other files of a checkpoint


@contextmanager
def open_checkpoints(training: TrainingConfig, keep_best: bool = False, **identity: Any) -> Iterator["Checkpoints"]:
    """The checkpoints of a training, removed after it succeeds. Without `training.save_every` none are saved.

    Args:
        keep_best: the best checkpoint is the result, so the last step is saved too.
        identity: everything that determines the outcome; a training with the same identity resumes a killed one.
    """
    if not training.save_every:
        with tempfile.TemporaryDirectory() as folder:
            yield Checkpoints(Path(folder))
        return
    checkpoints = Checkpoints(checkpoint_root() / cache_key(**identity), training, keep_best)
    yield checkpoints
    if os.environ.get("RANK", "0") == "0":
        shutil.rmtree(checkpoints.folder, ignore_errors=True)


def checkpoint_root() -> Path:
    """The folder of all checkpoints, which outlives the process that writes them.

    Raises:
        ServiceError: the step is in a pod of a pipeline, and has no volume.
    """
    if given := os.environ.get("VLMFLOW_CHECKPOINTS"):
        return Path(given)
    volume = os.environ.get("VLMFLOW_SHARED", "")
    if volume and Path(volume).is_dir():
        return Path(volume) / "checkpoints"
    if os.environ.get("VLMFLOW_KFP_RUN") and "VLMFLOW_HOME" not in os.environ:
        raise ServiceError(
            f"training.save_every: VLMFLOW_SHARED={volume}: not a folder, so the checkpoints would be lost with this "
            "pod; mount a volume in this step (`volumes: {datasets: /data}` in its placement) and set VLMFLOW_SHARED "
            "or VLMFLOW_CHECKPOINTS to its path"
        )
    return mlflow_store.home() / ".checkpoints"


class Checkpoints:
    """A folder of checkpoints, and the callbacks that save to it and resume from it.

    Attributes:
        folder: the `output_dir` of the trainer.
        callbacks: must come after all other callbacks, because they mark a checkpoint as complete.
    """

    def __init__(self, folder: Path, training: TrainingConfig | None = None, keep_best: bool = False):
        self.folder, self.training = folder, training
        self.saving = SaveCallback(training.save_every, keep_best) if training and training.save_every else None
        self.callbacks: list[TrainerCallback] = [self.saving] if self.saving else []

    def make_repeatable(self, collate: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """`collate` with random draws that a resumed training repeats; unchanged if nothing is saved."""
        if not (self.saving and self.training):
            return collate
        self.saving.seeded_collator = SeededCollator(collate, self.training.seed)
        return self.saving.seeded_collator

    def train(self, trainer: Trainer) -> None:
        """Train, from the newest complete checkpoint if there is one. Every process must call it."""
        newest = [self._newest() if trainer.is_world_process_zero() and self.saving else None]
        if trainer.args.world_size > 1:
            dist.broadcast_object_list(newest)
        if not trainer.is_fsdp_enabled:
            trainer._load_from_checkpoint = partial(_load_weights, trainer)  # type: ignore[method-assign]
            trainer._load_best_model = partial(_load_best, trainer)  # type: ignore[method-assign]
        trainer.train(resume_from_checkpoint=newest[0])

    def _newest(self) -> str | None:
        """The newest complete checkpoint; incomplete ones are removed."""
        newest_first = sorted(self.folder.glob("checkpoint-*"), key=lambda path: -int(path.name.split("-")[1]))
        for path in newest_first:
            if is_complete(path):
                logger.info("resuming from step %s of %s", path.name.split("-")[1], path.parent)
                return str(path)
            logger.warning("%s: incomplete, because a process was killed while saving; removed", path)
            shutil.rmtree(path, ignore_errors=True)
        return None


def _load_weights(trainer: Trainer, folder: str, model: Any = None) -> None:
    """Load the weights of a checkpoint into the trainer's model, all of them.

    Trainer itself compares the names in the file with those of the model, which differ for models that are saved under
    older names, such as LLaVA and Qwen2.5-VL; it then continues with the weights that it started with.

    Raises:
        ModelError: weights are missing, unknown or of another shape.
    """
    target: Any = model if model is not None else trainer.model
    target.load_state_dict(load_weights(type(target), folder).state_dict())


def _load_best(trainer: Trainer) -> None:
    """Load the weights of the checkpoint with the lowest held-out loss."""
    assert trainer.state.best_model_checkpoint is not None
    _load_weights(trainer, trainer.state.best_model_checkpoint)


def is_complete(checkpoint: Path) -> bool:
    """Whether every file of `checkpoint` exists with the size that was written."""
    try:
        sizes = json.loads((checkpoint / MARKER).read_text(encoding="utf-8"))
        return all((checkpoint / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


class SaveCallback(TrainerCallback):
    """Saves a checkpoint every few steps, and marks it when all processes have written their part.

    The loss is logged with each checkpoint: a killed process loses the sum that it kept for its next log line.
    """

    def __init__(self, every: int, keep_best: bool = False):
        self.every, self.keep_best = every, keep_best
        self.seeded_collator: SeededCollator | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, train_dataloader: Any, **_: Any
    ) -> None:
        """Resume the order of the rows and the random draws of the batches."""
        accumulation, batches = args.gradient_accumulation_steps, len(train_dataloader)
        epoch, step = divmod(state.global_step, max(1, -(-batches // accumulation)))
        # accelerate 1.15 does not set the epoch of the sampler inside the loader that skips batches.
        sampler = train_dataloader.batch_sampler
        while hasattr(sampler, "batch_sampler"):
            sampler = sampler.batch_sampler
        if hasattr(sampler.sampler, "set_epoch"):
            sampler.sampler.set_epoch(epoch)
        if self.seeded_collator:
            self.seeded_collator.batch_index = epoch * batches + step * accumulation
            self.seeded_collator.process = args.process_index

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Save every few steps, but not after the last one, where the model itself is written.

        The last step is saved where it may be the best one.
        """
        is_last = state.global_step >= state.max_steps
        control.should_save = self.keep_best if is_last else state.global_step % self.every == 0
        control.should_log = control.should_log or control.should_save

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Mark the checkpoint as complete."""
        if args.world_size > 1:
            dist.barrier()
        if not state.is_world_process_zero:
            return
        checkpoint = Path(args.output_dir or "") / f"checkpoint-{state.global_step}"
        files = (path for path in checkpoint.rglob("*") if path.is_file() and path.name != MARKER)
        sizes = {str(path.relative_to(checkpoint)): path.stat().st_size for path in files}
        partial = checkpoint / f"{MARKER}.partial"
        partial.write_text(json.dumps(sizes, indent=1), encoding="utf-8")
        partial.replace(checkpoint / MARKER)


class SeededCollator:
    """A collator whose random draws (crops, views, negatives) depend only on the seed and the index of the batch.

    Batches are made ahead of the step that uses them. So the state of torch's generator at the time of a checkpoint
    does not determine the draws of the next batch.
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
