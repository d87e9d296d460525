"""The scores artifact: values of each capability, scores of each example and some sample answers.

`scores.json` holds the values, `examples.parquet` a score for each example (higher is better) and `samples.json` a
few answers with their images.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vlmflow.artifacts.json_file import read_json
from vlmflow.errors import DataError

Examples = Mapping[str, Mapping[str, float]]  # capability → example → score; a higher score is better

_SCHEMA = pa.schema([("capability", pa.string()), ("example", pa.string()), ("score", pa.float64())])


def write(folder: Path, scores: dict[str, Any], examples: list[dict[str, Any]], samples: list[dict[str, Any]]) -> None:
    """Write the three files of the artifact.

    Args:
        examples: rows with `capability`, `example` (its uid) and `score`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "scores.json", scores)
    (folder / "samples.json").write_text(json.dumps(samples, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    pq.write_table(pa.Table.from_pylist(examples, schema=_SCHEMA), folder / "examples.parquet")


def describe_examples(value: Mapping[str, Any]) -> str:
    """Return the number of examples of a capability, and of how many they are a sample: `300 of 2,113`."""
    available = value.get("available", value["n"])
    return f"{value['n']:,}" if available <= value["n"] else f"{value['n']:,} of {available:,}"


def copy_if_same(earlier: Path, out: Path, stage: str, identity: dict[str, Any]) -> dict[str, Any] | None:
    """Copy the scores `earlier` to `out`, for another stage, if they have all values of `identity`; None if not."""
    if not (earlier / "scores.json").is_file():
        return None
    found = read_scores(earlier)
    if any(found.get(key) != value for key, value in identity.items()):
        return None
    scores = {**found, "stage": stage}
    shutil.copytree(earlier, out, dirs_exist_ok=True)
    _write_json(out / "scores.json", scores)
    return scores


def read_scores(folder: str | Path) -> dict[str, Any]:
    """Read `scores.json`: stage, model hash, data hashes, capabilities and confusion matrix.

    Raises:
        ModelError: the file is missing or damaged.
    """
    return read_json(folder, "scores.json")


def read_samples(folder: str | Path) -> list[dict[str, Any]]:
    """Read `samples.json`; empty if the file does not exist."""
    path = Path(folder) / "samples.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def read_examples(folder: str | Path) -> dict[str, dict[str, float]]:
    """Read the per-example scores: capability → example → score.

    Raises:
        DataError: the file is missing, or an example is scored twice.
    """
    path = Path(folder) / "examples.parquet"
    if not path.is_file():
        raise DataError(f"{path}: no per-example scores; evaluate the model again")
    examples: dict[str, dict[str, float]] = {}
    for row in pq.read_table(path, columns=["capability", "example", "score"]).to_pylist():
        scores = examples.setdefault(row["capability"], {})
        if row["example"] in scores:
            raise DataError(f"{path}: {row['capability']} scores the example {row['example']} twice")
        scores[row["example"]] = float(row["score"])
    return examples


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
