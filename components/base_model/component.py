from kfp import dsl

from vlmflow.runtime.step import step


@step(always_run=True)
def base_model(recipe: str, model: dsl.Output[dsl.Model], section: str = "base_model"):
    """Load the model that a fine-tuning starts from: a folder, a registered version, or one of the Hugging Face hub."""
    from pathlib import Path

    from components.base_model.load import BaseModelConfig, load_base_model
    from vlmflow.config.recipes import load

    load_base_model(load(BaseModelConfig, recipe, section), Path(model.path))
