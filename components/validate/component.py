from kfp import dsl

from vlmflow.runtime.step import step


@step(passes_on=True)
def validate(
    data: dsl.Input[dsl.Dataset],
    recipe: str,
    report: dsl.Output[dsl.HTML],
    verdict: dsl.Output[dsl.Artifact],
    section: str = "validate",
):
    """Check a dataset with Great Expectations; a critical failure stops the pipeline, a warning is reported."""
    from pathlib import Path

    from components.validate.config import ValidateConfig
    from components.validate.validation import validate as run
    from components.validate.validation import write_skipped
    from vlmflow.config import recipes as recipes

    if recipes.section(recipe, section) is None:
        write_skipped(section, Path(report.path), Path(verdict.path))
    else:
        run(Path(data.path), recipes.load(ValidateConfig, recipe, section), Path(report.path), Path(verdict.path))
