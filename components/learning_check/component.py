from kfp import dsl

from vlmflow.runtime.step import step


@step
def learning_check(
    model: dsl.Input[dsl.Model],
    pairs: dsl.Input[dsl.Dataset],
    untrained: dsl.Input[dsl.Artifact],
    trained: dsl.Input[dsl.Artifact],
    shuffled: dsl.Input[dsl.Artifact],
    recipe: str,
    finding: dsl.Output[dsl.Artifact],
    figure: dsl.Output[dsl.Artifact],
    page: dsl.Output[dsl.HTML],
    section: str = "learning_check",
):
    """Check that training worked: compare a model with its untrained self and with one trained on shuffled pairs."""
    from pathlib import Path

    from components.learning_check.comparison import check_learning
    from components.learning_check.config import LearningCheckConfig
    from components.learning_check.page import write_page
    from vlmflow.config.recipes import load

    found = check_learning(
        model=Path(model.path),
        pairs=Path(pairs.path),
        scores={"untrained": Path(untrained.path), "trained": Path(trained.path), "shuffled": Path(shuffled.path)},
        finding=Path(finding.path),
        figure=Path(figure.path),
        section=load(LearningCheckConfig, recipe, section),
    )
    write_page(found, Path(figure.path), Path(page.path))
