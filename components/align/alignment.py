"""Preference alignment by DPO, and the control that tells whether DPO was worth it.

Source: Rafailov et al. 2023, eq. 7 (TRL's DPOTrainer); the `sft` term beside it as in Pang et al. 2024.
"""

from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from components import checkpoint
from components import recipe as recipes
from components.budget import Training
from components.dataset import Dataset
from components.process import configure_logging, start_method


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """DPO's strength and the losses it is mixed with; the control takes the same budget on the chosen answers."""

    beta: float = 0.1
    losses: tuple[str, ...] = ("sigmoid", "sft")
    weights: tuple[float, ...] = (1.0, 1.0)
    training: Training = field(default_factory=Training)
    min_pairs: int = 32

    def __post_init__(self) -> None:
        if self.beta <= 0:
            raise ValueError(f"beta {self.beta} must be above 0")
        if len(self.losses) != len(self.weights):
            raise ValueError(f"losses and weights must go in pairs, got {self.losses} and {self.weights}")
        if self.training.processes != 1:
            raise ValueError("training.processes must be 1: DPO and its control are the two processes")
        if self.training.seconds is not None:
            raise ValueError("training.seconds is a budget of pretraining alone; give max_steps")


def align(start: Path, preferences: Path, model: Path, control: Path, recipe: str, section: str) -> None:
    """Train the aligned model and its control, side by side, one process each.

    Without the recipe's section, or with too few pairs to learn from, both are the model handed on.
    """
    data = Dataset(preferences, "preferences")
    alignment = recipes.load(Alignment, recipe, section)
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
    import components.sft  # noqa: F401  what both processes need, imported once

    with ProcessPoolExecutor(2, mp_context=get_context(start_method())) as pool:
        jobs = [
            pool.submit(train, str(start), str(preferences), str(out), alignment)
            for train, out in ((_dpo, model), (_control, control))
        ]
        for job in jobs:
            job.result()


def _control(start: str, preferences: str, out: str, alignment: Alignment) -> None:
    from components.sft import Example, fit
    from components.tuning import Tuning

    configure_logging()
    data = Dataset(preferences, "preferences")
    rows = [Example(r["images"][0]["bytes"], [(r["prompt"], r["chosen"])], {"objects"}) for r in data.rows()]
    fit(start, rows, out, Tuning(task="objects", training=alignment.training), step="control", data=data)


def _dpo(start: str, preferences: str, out: str, alignment: Alignment) -> None:
    import tempfile

    import datasets
    from transformers import set_seed
    from trl import DPOConfig, DPOTrainer

    from components.inference import load
    from components.training import Progress, arguments, optimizers

    configure_logging()
    data, loaded, training = Dataset(preferences, "preferences"), load(start), alignment.training
    set_seed(training.seed)
    model = loaded.model.train()
    progress = Progress()
    with tempfile.TemporaryDirectory() as folder:
        options: Any = arguments(training, Path(folder), max_length=None, activation_checkpointing=False)
        losses = {"beta": alignment.beta, "loss_type": list(alignment.losses), "loss_weights": list(alignment.weights)}
        trainer = DPOTrainer(
            model=model,
            ref_model=load(start).model,
            args=DPOConfig(**options, **losses),
            train_dataset=datasets.Dataset.from_list([_row(r) for r in data.rows()], features=_features()),
            processing_class=loaded.processor,
            optimizers=optimizers(model, training),  # type: ignore[arg-type]
            callbacks=[progress],
        )
        trainer.train()
    checkpoint.save(
        out,
        trainer.accelerator.unwrap_model(trainer.model),
        loaded.processor,
        family=loaded.card.get("family", ""),
        step="align",
        recipe=asdict(alignment),
        parent=checkpoint.Checkpoint(start).hash,
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
