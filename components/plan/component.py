from typing import NamedTuple

from components.plan.sections import SECTIONS
from vlmflow.runtime.step import step

Parts = NamedTuple("Parts", [(name, str) for name in SECTIONS])  # type: ignore[misc]


@step(whole_recipe=True)
def plan(recipe: str) -> Parts:  # type: ignore[valid-type]
    """Validate the recipe and split it by step, so that a change runs only the steps whose part it changes."""
    from components.plan.component import Parts
    from components.plan.sections import SECTIONS, check
    from vlmflow.config import recipes
    from vlmflow.config.sections import check_left_out, part

    sections = recipes.parse(recipe)
    check(sections)
    check_left_out(sections, SECTIONS.keys() - {"ingest"})  # a pipeline on a data revision does not ingest
    return Parts(*(recipes.dump(part(sections, name, name)) for name in Parts._fields))
