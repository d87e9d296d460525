"""The gate's decision as Markdown, for Kubeflow's UI."""

from typing import Any

CHOSEN = {"aligned": "The candidate was kept.", "fallback": "The candidate was refused; the model before it was kept."}


def markdown(decision: dict[str, Any]) -> str:
    """State which model was kept, whether it is promoted, the reasons and the comparison with the champion.

    Args:
        decision: the return value of `gate`.
    """
    role = "is promoted to champion" if decision["promoted"] else "stays a challenger"
    lines = [f"**{CHOSEN[decision['chosen']]} It {role}.**", ""]
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
