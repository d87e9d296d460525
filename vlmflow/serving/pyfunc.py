"""The model that `mlflow.pyfunc.load_model` returns for a registered version.

MLflow stores this file as it is (models from code) and executes it, so no pickle is written or loaded.
"""

import base64
import json
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel


class VisionLanguageModel(PythonModel):
    """Answers the prompt about the image of each row. A model that cannot chat answers with JSON: its V1 prediction."""

    def load_context(self, context: Any) -> None:
        """Load the checkpoint among the version's artifacts."""
        from vlmflow.inference import loading

        self.loaded = loading.load(context.artifacts["model"])

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> Any:
        """Answer each row of `image` (encoded bytes) and `prompt` with a text."""
        from vlmflow.images import decoding
        from vlmflow.inference import generation
        from vlmflow.serving import v1_instances

        images, prompts = list(model_input["image"]), list(model_input["prompt"])
        if "chat" in self.loaded.abilities:
            return generation.chat(self.loaded, [decoding.decode(image) for image in images], prompts)
        instances = [
            {"image": {"b64": base64.b64encode(image).decode()}, **({"text": prompt} if prompt else {})}
            for image, prompt in zip(images, prompts, strict=True)
        ]
        return [json.dumps(v1_instances.answer(self.loaded, instance)) for instance in instances]


set_model(VisionLanguageModel())
