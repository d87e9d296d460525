"""What MLflow runs when a registered version is loaded with `mlflow.pyfunc.load_model`.

MLflow keeps this file as it is (models from code) and executes it: no pickle is written or loaded.
"""

from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel


class VisionLanguageModel(PythonModel):
    """Answers the prompt about the picture, row by row."""

    def load_context(self, context: Any) -> None:
        """Load the checkpoint that lies in the version's artifacts."""
        from components import inference

        self.loaded = inference.load(context.artifacts["model"])

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> Any:
        """Answer each row, `image` (encoded bytes) and `prompt`, with a text."""
        from components import inference, pixels

        images = [pixels.decode(image) for image in model_input["image"]]
        return inference.chat(self.loaded, images, list(model_input["prompt"]))


set_model(VisionLanguageModel())
