from vlmflow.runtime.step import step


@step
def sweep(recipe: str, section: str = "sweep") -> list:
    """List the settings of a sweep: every combination of the values in the recipe."""
    from components.sweep.config import SweepConfig
    from components.sweep.grid import grid_points
    from vlmflow.config.recipes import load

    return grid_points(load(SweepConfig, recipe, section), recipe)
