"""Traits of a step that the step runner needs, passed to it as flags in the container's arguments."""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields


@dataclass(frozen=True, kw_only=True)
class StepTraits:
    """How the runner treats a step.

    whole_recipe: the step reads the whole recipe, not only its own section.
    always_run: the step is never taken from the step cache, because what a branch or an alias refers to changes.
    uses_registry: the result depends on the model registry.
    tracking_optional: the step also runs while MLflow is unreachable.
    """

    whole_recipe: bool = False
    always_run: bool = False
    uses_registry: bool = False
    tracking_optional: bool = False

    def flags(self) -> list[str]:
        """Return the command line flags of the traits that are set."""
        return [f"--{name}" for name, is_set in asdict(self).items() if is_set]


def add_trait_arguments(parser: ArgumentParser) -> None:
    """Add one flag per trait to the parser of the step runner."""
    for field in fields(StepTraits):
        parser.add_argument(f"--{field.name}", action="store_true")


def traits_from_namespace(namespace: Namespace) -> StepTraits:
    """Return the traits in parsed arguments."""
    return StepTraits(**{field.name: getattr(namespace, field.name) for field in fields(StepTraits)})


def traits_from_arguments(arguments: Sequence[object] | None) -> StepTraits:
    """Return the traits in a container's arguments, which may also contain placeholders of KFP."""
    return StepTraits(**{field.name: f"--{field.name}" in (arguments or ()) for field in fields(StepTraits)})
