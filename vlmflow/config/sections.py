"""Which dataclass reads which section of a recipe; a recipe is checked whole before anything runs."""

import difflib
from importlib import import_module
from typing import Any

from vlmflow.config import recipes as recipes
from vlmflow.errors import RecipeError

SECTIONS = {
    "ingest": "components.ingest.ingestion:Ingestion",
    "validate_raw": "components.validate.config:Validation",
    "fetch": "components.fetch.dvc:Versions",
    "curate": "components.curate.config:Curation",
    "validate_curated": "components.validate.config:Validation",
    "instructions": "components.instructions.conversations:Tasks",
    "validate_instructions": "components.validate.config:Validation",
    "sweep": "components.sweep.grid:Sweep",
    "pretrain": "vlmflow.training.pretraining.config:Pretraining",
    "untrained": "vlmflow.training.pretraining.config:Pretraining",
    "trained": "vlmflow.training.pretraining.config:Pretraining",
    "shuffled": "vlmflow.training.pretraining.config:Pretraining",
    "caption": "vlmflow.training.sft_config:Tuning",
    "ground": "vlmflow.training.sft_config:Tuning",
    "ocr": "vlmflow.training.sft_config:Tuning",
    "preferences": "components.preferences.preferences:Preferring",
    "validate_preferences": "components.validate.config:Validation",
    "align": "components.align.alignment:Alignment",
    "evaluate": "vlmflow.evaluation.config:Evaluation",
    "gate": "vlmflow.evaluation.config:GateConfig",
    "register": "vlmflow.tracking.registry:RegistryConfig",
    "deploy": "components.deploy.deployment:Deployment",
    "report": "components.report.page:Report",
    "learning_check": "components.learning_check.comparison:Check",
    "data_ablation": "components.data_ablation.gains:Returns",
    "champion": "vlmflow.tracking.registry:RegistryConfig",
    "monitor": "vlmflow.evaluation.config:GateConfig",
}
PLAIN = ("seed", "title", "pipeline")
MORE = {"gate": ("evaluate", "register"), "sweep": ("pretrain",)}  # sections that steps read beside their own
WHOLE = ("plan", "register", "report")  # steps that read all: one divides it, one hashes it into a tag, one prints it


def check(sections: dict[str, Any]) -> None:
    """Read every section of a recipe strictly.

    Raises:
        RecipeError: an unknown section, key, type or value, by name.
    """
    for name, values in sections.items():
        if name in PLAIN:
            continue
        if name not in SECTIONS:
            near = difflib.get_close_matches(name, [*SECTIONS, *PLAIN], n=1, cutoff=0)[0]
            raise RecipeError(
                f"{name}: no such section; the nearest is {near!r}, all: {', '.join([*PLAIN, *SECTIONS])}"
            )
        if values is not None:
            module, cls = SECTIONS[name].split(":")
            recipes.load(getattr(import_module(module), cls), sections, name)
    if not isinstance(sections.get("seed", 0), int):
        raise RecipeError(f"seed: expected int, got {sections['seed']!r}")


def part(sections: dict[str, Any], step: str, name: str) -> dict[str, Any]:
    """What a step reads of a recipe: its section `name`, the seed, and for some more; absent is not null."""
    wanted = list(sections) if step in WHOLE else ["seed", name, *MORE.get(step, ())]
    return {key: sections[key] for key in wanted if key in sections}
