from typing import NamedTuple

from vlmflow.config.sections import SECTIONS, WHOLE
from vlmflow.runtime.step import step

Parts = NamedTuple("Parts", [(name, str) for name in SECTIONS if name not in WHOLE])  # type: ignore[misc]


@step
def plan(recipe: str) -> Parts:  # type: ignore[valid-type]
    """Check a recipe whole, and hand each step its own part of it: what a change does not concern is not run again."""
    from components.plan.component import Parts
    from vlmflow.config import recipes as recipes
    from vlmflow.config.sections import check, part

    sections = recipes.parse(recipe)
    check(sections)
    return Parts(*(recipes.dump(part(sections, name, name)) for name in Parts._fields))
