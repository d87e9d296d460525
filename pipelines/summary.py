"""The summary of a run, one JSON file: cost of each step, rows by verdict, capabilities by stage."""

import json
from pathlib import Path
from typing import Any


def summarise(folder: Path, seconds: float) -> dict[str, Any]:
    """Build the content of `summary.json` from the records and artifacts of a finished run.

    `seconds` and `steps` vary from run to run; `results` is identical for the same seed.
    """
    records = [json.loads(file.read_text(encoding="utf-8")) for file in sorted((folder / "steps").glob("*.json"))]
    steps = {
        r["label"]: {"seconds": r["seconds"], "took": r["took"], "peak_mb": r["peak_mb"], "cached": r["cached"]}
        for r in records
    }
    return {
        "run": folder.name,
        "seconds": round(seconds, 1),
        "peak_mb": max((r["peak_mb"] for r in records), default=0),
        "steps": steps,
        "results": {
            "rows": _read(folder / "curate/ledger/summary.json") or _read(folder / "fetch/ledger/summary.json"),
            "stages": {
                r["label"].removeprefix("evaluate-"): _read(folder / r["label"] / "scores/scores.json").get(
                    "capabilities", {}
                )
                for r in records
                if r["step"] == "evaluate"
            },
            "skipped": _skipped(records),
            "gate": _read(folder / "gate/verdict/verdict.json") or _read(folder / "gate/verdict"),
            "version": _read(folder / "register/version/version.json") or _read(folder / "register/version"),
        },
    }


def _skipped(records: list[dict[str, Any]]) -> dict[str, str]:
    """Return the steps that were skipped and the reason, from their outputs' cards."""
    reasons = {}
    for record in records:
        for output in record["outputs"].values():
            card = _read(Path(output["path"]) / "card.json")
            reason = card.get("skipped") or card.get("notes", {}).get("skipped")
            if reason and record["step"] != "gate":  # it passes on a model, which may come from a skipped step
                reasons[record["label"]] = reason
        if "left_out" in record:
            reasons[record["label"]] = record["left_out"]
    return reasons


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
