"""The sections of a recipe that a step reads."""

from typing import Any

PLAIN = ("seed", "title", "pipeline")
MORE = {"gate": ("evaluate", "register"), "sweep": ("pretrain",)}  # sections that a step reads besides its own


def part(sections: dict[str, Any], step: str, name: str) -> dict[str, Any]:
    """Return the sections of a recipe that a step reads: its section `name`, the seed, and those of `MORE`."""
    wanted = ["seed", name, *MORE.get(step, ())]
    return {key: sections[key] for key in wanted if key in sections}
