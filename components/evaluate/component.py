from kfp import dsl

from vlmflow.runtime.step import step


@step(optional_inputs="earlier")
def evaluate(
    model: dsl.Input[dsl.Model],
    pairs: dsl.Input[dsl.Dataset],
    conversations: dsl.Input[dsl.Dataset],
    stage: str,
    recipe: str,
    scores: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    confusion: dsl.Output[dsl.ClassificationMetrics],
    page: dsl.Output[dsl.Markdown],
    section: str = "evaluate",
    earlier: dsl.Input[dsl.Artifact] = None,  # type: ignore[assignment]  # optional for `vlmflow step`
):
    """Measure each capability on held-out data, with intervals and with blank and shuffled images as controls."""
    from pathlib import Path

    from components.evaluate.kfp_metrics import log_metrics
    from vlmflow.config.recipes import load
    from vlmflow.evaluation.config import EvaluateConfig
    from vlmflow.evaluation.evaluate import evaluate as run

    found = run(
        model=Path(model.path),
        pairs=Path(pairs.path),
        conversations=Path(conversations.path),
        out=Path(scores.path),
        stage=stage,
        section=load(EvaluateConfig, recipe, section),
        earlier=Path(earlier.path) if earlier else None,
    )
    log_metrics(found, metrics, confusion, Path(page.path))
