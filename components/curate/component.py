"""Curation as a pipeline step."""

from kfp import dsl

from vlmflow.runtime.step import step


@step(passes_on=True)
def curate(
    raw: dsl.Input[dsl.Dataset],
    recipe: str,
    curated: dsl.Output[dsl.Dataset],
    ledger: dsl.Output[dsl.Artifact],
    funnel: dsl.Output[dsl.HTML],
    scorer: dsl.Output[dsl.Model],
    section: str = "curate",
):
    """Keep the pairs that are worth training on, and write a verdict for every pair."""
    from pathlib import Path

    from components.curate.config import CurateConfig
    from components.curate.curation import curate as run
    from components.curate.pass_on import pass_on
    from vlmflow.config import recipes

    paths = Path(raw.path), Path(curated.path), Path(ledger.path), Path(funnel.path), Path(scorer.path)
    if recipes.is_null(recipe, section):
        pass_on(*paths, reason=f"the section {section!r} of the recipe is null")
    else:
        run(*paths, recipes.load(CurateConfig, recipe, section))
