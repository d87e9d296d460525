"""The sections of a recipe that a step reads."""

from typing import Any

PLAIN = ("seed", "title", "pipeline")
MORE = {"gate": ("evaluate", "register"), "sweep": ("pretrain",)}  # sections that steps read beside their own
WHOLE = ("plan", "register", "report")  # steps that read all: one divides it, one hashes it into a tag, one prints it


def part(sections: dict[str, Any], step: str, name: str) -> dict[str, Any]:
    """What a step reads of a recipe: its section `name`, the seed, and for some more; absent is not null."""
    wanted = list(sections) if step in WHOLE else ["seed", name, *MORE.get(step, ())]
    return {key: sections[key] for key in wanted if key in sections}
