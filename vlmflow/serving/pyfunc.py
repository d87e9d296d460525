"""The model that `mlflow.pyfunc.load_model` returns for a registered version.

MLflow stores this file as it is (models from code) and executes it, so no pickle is written or loaded.
"""

import importlib
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

CODE = "vlmflow_code"  # folder of the version's packages below MLflow's `code`


class VersionPackages:
    """The packages of a version. They are importable only while the model works: a program may have its own `models`.

    Args:
        folder: contains the packages. They are not used in a process that has imported vlmflow already.
    """

    names = ("models", "vlmflow")
    _lock = threading.RLock()

    def __init__(self, folder: Path):
        self.folder, self.modules = str(folder), {}
        self.needed = "vlmflow.inference.loading" not in sys.modules

    @contextmanager
    def importable(self) -> Iterator[None]:
        """Replace the program's packages of these names by those of the version, and put them back at the end."""
        if not self.needed:
            yield
            return
        with self._lock:
            theirs = self._take()
            sys.modules.update(self.modules)
            sys.path.insert(0, self.folder)
            importlib.invalidate_caches()
            try:
                yield
            finally:
                sys.path.remove(self.folder)
                self.modules = self._take()
                sys.modules.update(theirs)

    def _take(self) -> dict[str, ModuleType]:
        return {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] in self.names}


class VisionLanguageModel(PythonModel):
    """Answers the prompt about the image of each row. A model that cannot chat answers with JSON: its V1 prediction."""

    def load_context(self, context: Any) -> None:
        """Load the checkpoint among the version's artifacts."""
        checkpoint = Path(context.artifacts["model"])
        self.packages = VersionPackages(checkpoint.parent.parent / "code" / CODE)
        with self.packages.importable():
            from vlmflow.inference import loading

            self.loaded = loading.load(checkpoint)

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> Any:
        """Answer each row of `image` (encoded bytes) and `prompt` with a text."""
        rows = list(zip(model_input["image"], model_input["prompt"], strict=True))
        with self.packages.importable():
            from vlmflow.serving import answering, v1_instances
            from vlmflow.serving.request_images import MAX_IMAGE_PIXELS

            reader = answering.image_reader(self.loaded, budget=len(rows) * MAX_IMAGE_PIXELS)
            if "chat" in self.loaded.abilities:
                options = {"max_new_tokens": answering.MAX_NEW_TOKENS}
                return [answer.text for answer in answering.answer_prompts(self.loaded, rows, reader, **options)]
            instances = [{"image": image, **({"text": prompt} if prompt else {})} for image, prompt in rows]
            return [json.dumps(v1_instances.answer(self.loaded, instance, reader)) for instance in instances]


set_model(VisionLanguageModel())
