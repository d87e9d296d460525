"""Preference alignment by DPO, and the control that tells whether DPO was worth it.

Source: Rafailov et al. 2023, eq. 7 (TRL's DPOTrainer); the `sft` term beside it as in Pang et al. 2024.
"""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from vlmflow.artifacts import checkpoint
from vlmflow.artifacts.dataset import Dataset
from vlmflow.config import recipes as recipes
from vlmflow.runtime.process import configure_logging, start_method
from vlmflow.training.config import TrainingConfig
from vlmflow.training.launcher import spread


@dataclass(frozen=True, kw_only=True)
class AlignConfig:
    """DPO's strength and the losses it is mixed with; the control takes the same budget on the chosen answers.

    Both train at once: as the two processes of this machine, or as two TrainJobs where `training.nodes` are several.
    """

    beta: float = 0.1
    losses: tuple[str, ...] = ("sigmoid", "sft")
    weights: tuple[float, ...] = (1.0, 1.0)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    min_pairs: int = 32

    def __post_init__(self) -> None:
        if self.beta <= 0:
            raise ValueError(f"beta {self.beta} must be above 0")
        if len(self.losses) != len(self.weights):
            raise ValueError(f"losses and weights must go in pairs, got {self.losses} and {self.weights}")
        if self.training.processes != 1 and self.training.nodes == 1:
            raise ValueError("training.processes must be 1: DPO and its control are the two processes")
        if self.training.seconds is not None:
            raise ValueError("training.seconds is a budget of pretraining alone; give max_steps")


def align(start: Path, preferences: Path, model: Path, control: Path, recipe: str, section: str) -> None:
    """Train the aligned model and its control, side by side, one process each.

    Without the recipe's section, or with too few pairs to learn from, both are the model handed on.
    """
    data = Dataset(preferences, "preferences")
    alignment = recipes.load(AlignConfig, recipe, section)
    reason = ""
    if recipes.section(recipe, section) is None:
        reason = f"the recipe has no section {section!r}"
    elif len(data) < alignment.min_pairs:
        reason = f"{len(data)} preference pairs are fewer than min_pairs {alignment.min_pairs}"
        reason = str(data.card.notes.get("skipped", reason))
    if reason:
        for out in (model, control):
            checkpoint.hand_on(start, out, reason)
        return
    import vlmflow.training.sft  # noqa: F401  what both processes need, imported once

    with ProcessPoolExecutor(2, mp_context=get_context(start_method())) as pool:
        jobs = [
            pool.submit(_spread, name, train, start, preferences, alignment, out)
            for name, train, out in (("align", _dpo, model), ("control", _control, control))
        ]
        for job in jobs:
            job.result()


def _spread(
    name: str, train: Callable[..., None], start: Path, preferences: Path, alignment: AlignConfig, out: Path
) -> None:
    configure_logging()
    spread(name, train, alignment.training, start, preferences, alignment, out=out)


def _control(start: Path, preferences: Path, alignment: AlignConfig, out: Path) -> None:
    from vlmflow.training.sft import Example, fit
    from vlmflow.training.sft_config import FineTuneConfig

    data = Dataset(preferences, "preferences")
    rows = [Example(r["images"][0]["bytes"], [(r["prompt"], r["chosen"])], {"objects"}) for r in data.rows()]
    fit(start, rows, out, FineTuneConfig(task="objects", training=alignment.training), step="control", data=data)


def _dpo(start: Path, preferences: Path, alignment: AlignConfig, out: Path) -> None:
    import datasets
    from transformers import set_seed
    from trl import DPOConfig, DPOTrainer

    from vlmflow.inference.loading import load
    from vlmflow.runtime.code_hash import code_hash
    from vlmflow.training.arguments import Progress, arguments
    from vlmflow.training.checkpointing import checkpoints
    from vlmflow.training.fsdp import prepared, weights

    data, loaded, training = Dataset(preferences, "preferences"), load(start), alignment.training
    set_seed(training.seed)
    model = loaded.model.train()
    progress = Progress()
    parent = checkpoint.Checkpoint(start).hash
    what = {"parent": parent, "data": data.hash, "section": asdict(alignment), "code": code_hash(__name__)}
    with checkpoints(training, step="align", **what) as kept:
        options: Any = arguments(training, kept.folder, max_length=None, activation_checkpointing=False)
        losses = {"beta": alignment.beta, "loss_type": list(alignment.losses), "loss_weights": list(alignment.weights)}
        trainer = DPOTrainer(
            model=model,
            ref_model=load(start).model,
            args=DPOConfig(**options, **losses),
            train_dataset=datasets.Dataset.from_list([_row(r) for r in data.rows()], features=_features()),
            processing_class=loaded.processor,
            callbacks=[progress, *kept.callbacks],
        )
        kept.train(prepared(trainer, training))
        whole = weights(trainer)
        if trainer.is_world_process_zero():
            checkpoint.save(
                out,
                trainer.accelerator.unwrap_model(trainer.model),
                loaded.processor,
                weights=whole,
                family=loaded.card.get("family", ""),
                step="align",
                recipe=asdict(alignment),
                parent=parent,
                datasets=[data.hash],
                curve=progress.curve,
                notes={"pairs": len(data)},
            )


def _row(row: dict[str, Any]) -> dict[str, Any]:
    def said(role: str, content: str) -> list[dict[str, str]]:
        return [{"role": role, "content": content}]

    return {
        "images": row["images"],
        "prompt": said("user", row["prompt"]),
        "chosen": said("assistant", row["chosen"]),
        "rejected": said("assistant", row["rejected"]),
    }


def _features() -> Any:
    import datasets

    messages = datasets.List({"role": datasets.Value("string"), "content": datasets.Value("string")})
    pictures = datasets.List(datasets.Image())
    return datasets.Features({"images": pictures, "prompt": messages, "chosen": messages, "rejected": messages})
