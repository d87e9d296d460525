from components.step import step


@step
def sweep(recipe: str, section: str = "sweep") -> list:
    """List the settings of a sweep, each combination of the values that the recipe gives."""
    from components.recipe import load
    from components.sweep.grid import Sweep, settings

    return settings(load(Sweep, recipe, section), recipe)
