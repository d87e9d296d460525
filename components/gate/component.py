from kfp import dsl

from vlmflow.runtime.step import step


@step(uses_registry=True)
def gate(
    candidate: dsl.Input[dsl.Model],
    candidate_scores: dsl.Input[dsl.Artifact],
    fallback: dsl.Input[dsl.Model],
    fallback_scores: dsl.Input[dsl.Artifact],
    pairs: dsl.Input[dsl.Dataset],
    conversations: dsl.Input[dsl.Dataset],
    recipe: str,
    chosen: dsl.Output[dsl.Model],
    scores: dsl.Output[dsl.Artifact],
    verdict: dsl.Output[dsl.Artifact],
    page: dsl.Output[dsl.Markdown],
    section: str = "gate",
):
    """Keep the aligned model unless a protected capability got worse, and decide whether it is promoted to champion."""
    from functools import partial
    from pathlib import Path

    from components.gate.markdown import markdown
    from components.gate.promotion import Candidate, gate
    from vlmflow.config.recipes import load
    from vlmflow.evaluation.config import EvaluateConfig, GateConfig
    from vlmflow.evaluation.evaluate import evaluate
    from vlmflow.tracking.registry import RegistryConfig

    data = {"pairs": Path(pairs.path), "conversations": Path(conversations.path)}
    out = {"chosen": Path(chosen.path), "scores": Path(scores.path), "verdict": Path(verdict.path)}
    decision = gate(
        Candidate(Path(candidate.path), Path(candidate_scores.path)),
        Candidate(Path(fallback.path), Path(fallback_scores.path)),
        registry=load(RegistryConfig, recipe, "register").name,
        evaluate=partial(evaluate, **data, stage="champion", section=load(EvaluateConfig, recipe, "evaluate")),
        **out,
        section=load(GateConfig, recipe, section),
    )
    Path(page.path).write_text(markdown(decision), encoding="utf-8")
