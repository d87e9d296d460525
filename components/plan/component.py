from typing import NamedTuple

from components.plan.sections import SECTIONS
from vlmflow.config.sections import WHOLE
from vlmflow.runtime.step import step

Parts = NamedTuple("Parts", [(name, str) for name in SECTIONS if name not in WHOLE])  # type: ignore[misc]


@step
def plan(recipe: str) -> Parts:  # type: ignore[valid-type]
    """Check a recipe whole, and hand each step its own part of it: what a change does not concern is not run again."""
    from components.plan.component import Parts
    from components.plan.sections import check
    from vlmflow.config import recipes as recipes
    from vlmflow.config.sections import part

    sections = recipes.parse(recipe)
    check(sections)
    return Parts(*(recipes.dump(part(sections, name, name)) for name in Parts._fields))
