"""The sections of a recipe: which config class reads each, and the check of a whole recipe before anything runs."""

from importlib import import_module
from typing import Any

from vlmflow.config import recipes
from vlmflow.config.nearest import nearest
from vlmflow.config.sections import PLAIN
from vlmflow.errors import RecipeError

SECTIONS = {
    "ingest": "components.ingest.config:IngestConfig",
    "validate_raw": "components.validate.config:ValidateConfig",
    "fetch": "components.fetch.config:FetchConfig",
    "curate": "components.curate.config:CurateConfig",
    "validate_curated": "components.validate.config:ValidateConfig",
    "instructions": "components.instructions.config:InstructionConfig",
    "validate_instructions": "components.validate.config:ValidateConfig",
    "sweep": "components.sweep.config:SweepConfig",
    "pretrain": "vlmflow.training.pretraining.config:PretrainConfig",
    "untrained": "vlmflow.training.pretraining.config:PretrainConfig",
    "trained": "vlmflow.training.pretraining.config:PretrainConfig",
    "shuffled": "vlmflow.training.pretraining.config:PretrainConfig",
    "caption": "vlmflow.training.finetuning.config:FineTuneConfig",
    "ground": "vlmflow.training.finetuning.config:FineTuneConfig",
    "ocr": "vlmflow.training.finetuning.config:FineTuneConfig",
    "preferences": "components.preferences.config:PreferenceConfig",
    "validate_preferences": "components.validate.config:ValidateConfig",
    "base_model": "components.base_model.load:BaseModelConfig",
    "finetune": "vlmflow.training.finetuning.config:FineTuneConfig",
    "ingest_preferences": "components.ingest.config:IngestConfig",
    "align": "components.align.config:AlignConfig",
    "evaluate": "vlmflow.evaluation.config:EvaluateConfig",
    "gate": "vlmflow.evaluation.config:GateConfig",
    "register": "vlmflow.tracking.registry:RegistryConfig",
    "deploy": "components.deploy.config:DeployConfig",
    "report": "components.report.config:ReportConfig",
    "learning_check": "components.learning_check.config:LearningCheckConfig",
    "data_ablation": "components.data_ablation.config:DataAblationConfig",
    "champion": "vlmflow.tracking.registry:RegistryConfig",
    "monitor": "vlmflow.evaluation.config:GateConfig",
}


def config_class(name: str) -> type[Any]:
    """Import the config class of section `name`."""
    module, cls = SECTIONS[name].split(":")
    return getattr(import_module(module), cls)


def check(sections: dict[str, Any]) -> None:
    """Validate every section of a recipe.

    Raises:
        RecipeError: an unknown section, an unknown key, a wrong type or an impossible value; the message names it.
    """
    for name, values in sections.items():
        if name in PLAIN:
            continue
        if name not in SECTIONS:
            known = [*PLAIN, *SECTIONS]
            raise RecipeError(f"{name}: no such section; {nearest(name, known)}, all: {', '.join(known)}")
        if values is not None:
            recipes.load(config_class(name), sections, name)
    seed = sections.get("seed", 0)
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise RecipeError(f"seed: expected int, got {seed!r}")
