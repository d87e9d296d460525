from vlmflow.runtime.step import step


@step
def sweep(recipe: str, section: str = "sweep") -> list:
    """List the settings of a sweep, each combination of the values that the recipe gives."""
    from components.sweep.grid import SweepConfig, settings
    from vlmflow.config.recipes import load

    return settings(load(SweepConfig, recipe, section), recipe)
