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
    reads_sources: the step reads files that its recipe section does not name, such as the images of an index; the step
        cache records all files that it opens.
    passes_on: without its section, the step itself passes its input on or writes an empty dataset; other steps are
        left out if their section is null (see `left_out`).
    optional_inputs: names of inputs, separated by commas, without which the step can run.
    """

    whole_recipe: bool = False
    always_run: bool = False
    uses_registry: bool = False
    tracking_optional: bool = False
    reads_sources: bool = False
    passes_on: bool = False
    optional_inputs: str = ""

    def flags(self) -> list[str]:
        """Return the command line flags of the traits that are set."""
        return [f"--{name}" if value is True else f"--{name}={value}" for name, value in asdict(self).items() if value]


def add_trait_arguments(parser: ArgumentParser) -> None:
    """Add one flag per trait to the parser of the step runner."""
    for field in fields(StepTraits):
        if isinstance(field.default, bool):
            parser.add_argument(f"--{field.name}", action="store_true")
        else:
            parser.add_argument(f"--{field.name}", default=field.default)


def traits_from_namespace(namespace: Namespace) -> StepTraits:
    """Return the traits in parsed arguments."""
    return StepTraits(**{field.name: getattr(namespace, field.name) for field in fields(StepTraits)})


def traits_from_arguments(arguments: Sequence[object] | None) -> StepTraits:
    """Return the traits in a container's arguments, which may also contain placeholders of KFP."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    add_trait_arguments(parser)
    texts = [argument for argument in arguments or () if isinstance(argument, str) and argument.startswith("--")]
    return traits_from_namespace(parser.parse_known_args(texts)[0])
