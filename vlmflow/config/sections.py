"""The sections of a recipe that a step reads, and what their absence means."""

from collections.abc import Collection, Iterator
from typing import Any

from vlmflow.errors import RecipeError

PLAIN = ("seed", "title", "pipeline")
MORE = {"gate": ("evaluate", "register"), "sweep": ("pretrain",)}  # sections that a step reads besides its own

# Sections without which a step is left out; any other step runs with its defaults if its section is missing.
OPTIONAL = ("validate_raw", "validate_curated", "validate_instructions", "caption", "ground", "ocr", "preferences",
            "validate_preferences", "align", "finetune", "ingest_preferences")  # fmt: skip

# A step, and the step whose result it uses: the second cannot be left out without the first.
_NEEDS = {
    "curate": "ingest", "pretrain": "ingest", "validate_instructions": "instructions", "gate": "evaluate",
    "register": "gate", "deploy": "register", "learning_check": "evaluate", "data_ablation": "evaluate",
    "monitor": "evaluate",
}  # fmt: skip


def part(sections: dict[str, Any], step: str, name: str) -> dict[str, Any]:
    """Return the sections of a recipe that a step reads: its section `name`, the seed, and those of `MORE`."""
    wanted = ["seed", name, *MORE.get(step, ())]
    return {key: sections[key] for key in wanted if key in sections}


def check_left_out(sections: dict[str, Any], used: Collection[str]) -> None:
    """Check that no step of the recipe needs the result of a step that the recipe leaves out with null.

    Without `pretrain` there is no model, and all later steps are left out with it.

    Args:
        used: the sections that the steps of the pipeline read.

    Raises:
        RecipeError: names both sections.
    """
    for name, needed in _NEEDS.items():
        is_kept = name in used and sections.get(name) is not None
        if is_kept and needed in used and needed in sections and sections[needed] is None:
            raise RecipeError(f"{needed}: null leaves the step out, but {name} uses its result; set {name} to null too")


def explain_absence(sections: dict[str, Any], used: Collection[str]) -> Iterator[str]:
    """Yield a line for the sections in `used` that are null, and one for those that are missing but run anyway."""
    if null := [name for name in used if name in sections and sections[name] is None]:
        yield f"left out, because their section is null: {', '.join(null)}, and what needs their results"
    if missing := [name for name in used if name not in sections and name not in OPTIONAL]:
        yield f"without a section in the recipe, with default values: {', '.join(missing)}"
