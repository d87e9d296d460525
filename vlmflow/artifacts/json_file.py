"""JSON files inside an artifact's folder."""

import json
from pathlib import Path
from typing import Any

from vlmflow.errors import ModelError


def read_json(folder: str | Path, name: str) -> dict[str, Any]:
    """Read the JSON file `name` of an artifact.

    Raises:
        ModelError: the file is missing or is not valid JSON.
    """
    path = Path(folder) / name
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path}: file is missing; run the previous step again") from None
    except json.JSONDecodeError as error:
        raise ModelError(f"{path}: invalid JSON: {error}; run the step that writes it again") from None
