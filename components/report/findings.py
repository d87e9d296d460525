"""What fell short, and which way of alignment won: sentences made from the facts of this life, never from hope."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from components.report.artifacts import Capability, RunArtifacts, Stage
from components.report.formatting import label, listing, percent, points

FEW = 50  # examples; below, an interval is too wide to tell models apart
YES_RATIO = 0.1  # either side of .5 on questions of which half are true
SATURATED = 0.95


@dataclass(frozen=True)
class Finding:
    """One thing that fell short: what kind of thing, and the sentence with its figures."""

    kind: str
    text: str


def shortcomings(life: RunArtifacts) -> list[Finding]:
    """Everything that the figures show to be missing, unproven or worse than before."""
    return [Finding(kind, text) for kind, texts in _KINDS.items() for text in texts(life)]


def _skipped(life: RunArtifacts) -> Iterator[str]:
    for stage in life.stages.values():
        if stage.skipped:
            yield f"{label(stage.name)} did not run: {stage.skipped}."
    if not life.transcript.get("exchanges"):
        yield f"The endpoint was not tried{': ' + why if (why := life.transcript.get('kept_back')) else ''}."


def _refused(life: RunArtifacts) -> Iterator[str]:
    champion = f"the champion, version {life.verdict.get('against')}"
    for rival, key in (("the model before alignment", "alignment"), (champion, "capabilities")):
        for one in life.verdict.get(key) or []:
            if one["verdict"] == "lost":
                yield f"The gate refused: {label(one['capability'])} cannot be measured any more; {rival} had it."
            elif one["verdict"] == "worse":
                yield (
                    f"The gate refused: {label(one['capability'])} is worse than that of {rival}, by "
                    f"{points(one['difference'])} points [{points(one['low'])}, {points(one['high'])}]."
                )


def _worse(life: RunArtifacts) -> Iterator[str]:
    for name, changes in life.changes.items():
        before = life.previous(life.stages[name])
        for capability, change in changes.items():
            if change.verdict == "lost":
                yield f"{label(capability)} was measured before {label(name)}, and not after it."
            elif change.verdict == "worse" and before:
                was, now = before.capabilities[capability], life.stages[name].capabilities[capability]
                yield (
                    f"{label(name)} made {label(capability)} worse: {was.metric} {percent(was.value)} before, "
                    f"{percent(now.value)} after."
                )


def _blind(life: RunArtifacts) -> Iterator[str]:
    for name, capability in life.final.capabilities.items():
        if capability.tied_controls:
            controls = capability.controls
            values = listing([f"{percent(controls[k]['value'])} with {k} pictures" for k in capability.tied_controls])
            yield (
                f"{label(name)} is not shown to come from the picture: {percent(capability.value)} "
                f"[{percent(capability.low)}, {percent(capability.high)}] against {values}."
            )


def _answers(life: RunArtifacts) -> Iterator[str]:
    for name, capability in life.final.capabilities.items():
        for extra, value in capability.extras.items():
            if "failures" in extra and value > 0:
                yield f"{label(name)}: {percent(value)}% {extra}, counted as misses."
            if "mentioned" in extra and value == 0:
                yield f"{label(name)}: {percent(capability.value)} says nothing, for no answer holds any ({extra}: 0)."
            if "yes ratio" in extra and abs(value - 0.5) > YES_RATIO:
                yield f"{label(name)}: the model says yes to {percent(value)}% of the questions; about half are true."


def _few(life: RunArtifacts) -> Iterator[str]:
    few = {name: c.n for name, c in life.final.capabilities.items() if c.n < FEW}
    for count in sorted(set(few.values())):
        names = listing([label(name) for name, n in few.items() if n == count])
        yield f"Measured on {count} examples only: {names}. Read the interval, not the value."


def _training(life: RunArtifacts) -> Iterator[str]:
    for stage in life.trained:
        losses = [point["loss"] for point in stage.curve]
        third = max(1, len(losses) // 3)  # single points are noise
        first, last = (sum(part) / third for part in (losses[:third], losses[-third:]))
        if len(losses) > 1 and last >= first:
            yield f"{label(stage.name)}: the loss did not fall ({first:.3f} at first, {last:.3f} at last)."


def _data(life: RunArtifacts) -> Iterator[str]:
    for what, kinds in (life.raw.card.notes.get("quarantined") or {}).items():
        reasons = listing([f"{count} {reason}" for reason, count in kinds.items()])
        yield f"Left out at ingest, {what}: {reasons}."


_KINDS: dict[str, Any] = {
    "Did not run": _skipped,
    "Refused by the gate": _refused,
    "Got worse on the way": _worse,
    "No better than its control": _blind,
    "Answers": _answers,
    "Too few examples": _few,
    "Training": _training,
    "Data": _data,
}


def alignment(life: RunArtifacts) -> list[str]:
    """Which won, DPO or its SFT control, in plain sentences; on what counts, hallucination, and on the rest."""
    aligned, control, before = (life.stages[name] for name in ("aligned", "control", "ocr"))
    if aligned.skipped:
        return [f"Alignment did not run: {aligned.skipped}."]
    rivals = life.against(aligned, control)
    found = []
    for name, capability in aligned.capabilities.items():
        if capability.metric.startswith("CHAIR") and name in control.capabilities and name in rivals:
            found.append(_hallucination(name, capability, before, control, rivals[name].verdict))
    better, worse = ([label(n) for n, c in rivals.items() if c.verdict == v] for v in ("better", "worse"))
    rest = len(rivals) - len(better) - len(worse)
    parts = [f"better on {listing(better)}" if better else "", f"worse on {listing(worse)}" if worse else ""]
    if any(parts):
        found.append(
            f"Against its SFT control DPO is {listing([p for p in parts if p])}; "
            f"on the other {rest} the interval of the difference holds zero."
        )
    else:
        found.append("DPO and its SFT control differ on no capability beyond the interval.")
    accuracy = before.capabilities.get("preference")
    if accuracy and accuracy.value >= SATURATED:
        found.append(
            f"The truth was preferred in {percent(accuracy.value)}% of the pairs before alignment already, "
            "so that figure is saturated and tells nothing more."
        )
    return found


def _hallucination(name: str, capability: Capability, before: Stage, control: Stage, verdict: str) -> str:
    winner = {"better": "DPO wins", "worse": "the SFT control wins"}.get(verdict, "neither wins beyond the interval")
    was = f"{percent(before.capabilities[name].value)} before, " if name in before.capabilities else ""
    return (
        f"{label(name)} ({capability.metric}, lower is better): {was}{percent(capability.value)} after DPO, "
        f"{percent(control.capabilities[name].value)} after the SFT control: {winner}."
    )
