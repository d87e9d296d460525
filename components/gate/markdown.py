"""The gate's verdict in words, for Kubeflow's UI."""

from typing import Any

KEPT = {"aligned": "The candidate goes on.", "fallback": "The model before it goes on."}


def markdown(decision: dict[str, Any]) -> str:
    """Which model goes on, whether it may become the champion, and why.

    Args:
        decision: what `gate` returns.
    """
    place = "may become the champion" if decision["promoted"] else "stays a challenger"
    lines = [f"**{KEPT[decision['chosen']]} It {place}.**", ""]
    lines += [f"- {reason}" for reason in decision["reasons"]]
    if compared := decision["capabilities"]:
        lines += [
            "",
            f"| capability | new | champion {decision['against']} | difference | verdict |",
            "|---|---|---|---|---|",
        ]
        lines += [_row(comparison) for comparison in compared]
    return "\n".join(lines) + "\n"


def _row(comparison: dict[str, Any]) -> str:
    name, champion = comparison["capability"], f"{comparison['champion']:.3f}"
    if comparison["difference"] is None:
        return f"| {name} | not scored | {champion} | | {comparison['verdict']} |"
    interval = f"{comparison['difference']:+.3f} [{comparison['low']:+.3f}, {comparison['high']:+.3f}]"
    return f"| {name} | {comparison['challenger']:.3f} | {champion} | {interval} | {comparison['verdict']} |"
