"""Shortcomings of the run and the result of alignment, as sentences derived from the measurements."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from components.report.artifacts import Capability, RunArtifacts, Stage
from components.report.formatting import label, percent, points
from vlmflow.evaluation.objects import join

FEW = 50  # with fewer examples, intervals are too wide to distinguish models
YES_RATIO = 0.1  # accepted distance from 0.5, the share of questions whose answer is yes
SATURATED = 0.95


@dataclass(frozen=True)
class Finding:
    """A shortcoming: its kind, and a sentence with the values."""

    kind: str
    text: str


def shortcomings(run: RunArtifacts) -> list[Finding]:
    """List what is missing, not significant or worse than before."""
    return [Finding(kind, text) for kind, texts in _KINDS.items() for text in texts(run)]


def _skipped(run: RunArtifacts) -> Iterator[str]:
    for stage in run.stages.values():
        if stage.skipped:
            yield f"{label(stage.name)} was skipped: {stage.skipped}."
    if not run.transcript.get("exchanges"):
        yield f"The endpoint was not tested{': ' + why if (why := run.transcript.get('kept_back')) else ''}."


def _refused(run: RunArtifacts) -> Iterator[str]:
    for name, kinds in (run.verdict.get("unproven") or {}).items():
        what = f"{label(name)} is" if name else "No accuracy was measured on enough examples to be"
        yield f"The gate refused: {what}{' not' if name else ''} better than with {join(kinds)} images."
    champion = f"the champion, version {run.verdict.get('against')}"
    for rival, key in (("the model before alignment", "alignment"), (champion, "capabilities")):
        for one in run.verdict.get(key) or []:
            if one["verdict"] == "lost":
                yield f"The gate refused: {label(one['capability'])} was not measured, but {rival} has a score."
            elif one["verdict"] == "worse":
                yield (
                    f"The gate refused: {label(one['capability'])} is worse than that of {rival}, by "
                    f"{points(one['difference'])} points [{points(one['low'])}, {points(one['high'])}]."
                )


def _worse(run: RunArtifacts) -> Iterator[str]:
    for name, changes in run.changes.items():
        before = run.previous(run.stages[name])
        for capability, change in changes.items():
            if change.verdict == "lost":
                yield f"{label(capability)} was measured before the stage {label(name)}, but not after it."
            elif change.verdict == "worse" and before:
                was, now = before.capabilities[capability], run.stages[name].capabilities[capability]
                yield (
                    f"{label(capability)} got worse in the stage {label(name)}: {was.metric} "
                    f"{percent(was.value)} before, {percent(now.value)} after."
                )


def _blind(run: RunArtifacts) -> Iterator[str]:
    for name, capability in run.final.capabilities.items():
        if capability.tied_controls:
            controls = capability.controls
            values = join([f"{percent(controls[k]['value'])} with {k} images" for k in capability.tied_controls])
            yield (
                f"{label(name)} is not significantly better than its control: {percent(capability.value)} "
                f"[{percent(capability.low)}, {percent(capability.high)}] against {values}."
            )


def _answers(run: RunArtifacts) -> Iterator[str]:
    for name, capability in run.final.capabilities.items():
        for extra, value in capability.extras.items():
            if "failures" in extra and value > 0:
                yield f"{label(name)}: {percent(value)}% {extra}, counted as misses."
            if "mentioned" in extra and value == 0:
                value_text = percent(capability.value)
                yield f"{label(name)}: {value_text} is not meaningful: no answer names an object ({extra}: 0)."
            if "yes ratio" in extra and abs(value - 0.5) > YES_RATIO:
                yield f"{label(name)}: the model answers yes to {percent(value)}% of the questions; 50% is expected."


def _few(run: RunArtifacts) -> Iterator[str]:
    few = {name: c.n for name, c in run.final.capabilities.items() if c.n < FEW}
    for count in sorted(set(few.values())):
        names = join([label(name) for name, n in few.items() if n == count])
        yield f"Measured on only {count} examples: {names}. Judge by the interval rather than the value."


def _training(run: RunArtifacts) -> Iterator[str]:
    for stage in run.trained:
        losses = [point["loss"] for point in stage.curve]
        third = max(1, len(losses) // 3)  # single points are noisy
        first, last = (sum(part) / third for part in (losses[:third], losses[-third:]))
        if len(losses) > 1 and last >= first:
            yield f"{label(stage.name)}: the loss did not fall ({first:.3f} at the start, {last:.3f} at the end)."


def _data(run: RunArtifacts) -> Iterator[str]:
    for what, kinds in (run.raw.card.notes.get("quarantined") or {}).items():
        reasons = join([f"{count} {reason}" for reason, count in kinds.items()])
        yield f"Rejected by ingest, {what}: {reasons}."
    if faults := run.ledger.get("held_out_faults"):
        counts = join([f"{count} by {rule.replace('_', ' ')}" for rule, count in faults.items()])
        yield f"The test split stays as it is; curation would have dropped from training {counts}."


def _sampled(run: RunArtifacts) -> Iterator[str]:
    sampled = [f"{label(name)} {c.examples}" for name, c in run.final.capabilities.items() if c.available > c.n]
    if sampled:
        yield f"Scored on a sample of the test examples, chosen with seed {run.final.seed}: {join(sampled)}."
    for name, reason in run.final.not_measured.items():
        yield f"{label(name)} was not measured: {reason}."


_KINDS: dict[str, Any] = {
    "Skipped": _skipped,
    "Refused by the gate": _refused,
    "Regressions between stages": _worse,
    "Not better than the control": _blind,
    "Answers": _answers,
    "Too few examples": _few,
    "Samples": _sampled,
    "Training": _training,
    "Data": _data,
}


def alignment(run: RunArtifacts) -> list[str]:
    """Compare DPO with its SFT control in sentences: on hallucination, the target, and on the other capabilities."""
    aligned, control, before = (run.stages[name] for name in ("aligned", "control", "ocr"))
    if aligned.skipped:
        return [f"Alignment was skipped: {aligned.skipped}."]
    rivals = run.against(aligned, control)
    sentences = []
    for name, capability in aligned.capabilities.items():
        if capability.metric.startswith("CHAIR") and name in control.capabilities and name in rivals:
            sentences.append(_hallucination(name, capability, before, control, rivals[name].verdict))
    better, worse = ([label(n) for n, c in rivals.items() if c.verdict == v] for v in ("better", "worse"))
    rest = len(rivals) - len(better) - len(worse)
    parts = [f"better on {join(better)}" if better else "", f"worse on {join(worse)}" if worse else ""]
    if any(parts):
        sentences.append(
            f"Compared with its SFT control, DPO is {join([p for p in parts if p])}; "
            f"on the other {rest} capabilities the interval of the difference contains zero."
        )
    else:
        sentences.append("DPO and its SFT control do not differ significantly on any capability.")
    accuracy = before.capabilities.get("preference")
    if accuracy and accuracy.value >= SATURATED:
        sentences.append(
            f"The true answer was already preferred in {percent(accuracy.value)}% of the pairs before alignment, "
            "so this metric is saturated and shows no further improvement."
        )
    return sentences


def _hallucination(name: str, capability: Capability, before: Stage, control: Stage, verdict: str) -> str:
    winner = {"better": "DPO wins", "worse": "the SFT control wins"}.get(verdict, "the difference is not significant")
    was = f"{percent(before.capabilities[name].value)} before, " if name in before.capabilities else ""
    return (
        f"{label(name)} ({capability.metric}, lower is better): {was}{percent(capability.value)} after DPO, "
        f"{percent(control.capabilities[name].value)} after the SFT control: {winner}."
    )
