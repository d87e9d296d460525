"""`vlmflow zoo`: the families, their size, and whether they learn."""

import json
import shutil
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from vlmflow.config.nearest import nearest
from vlmflow.errors import RecipeError
from vlmflow.runtime.code_hash import ROOT

zoo = typer.Typer(name="zoo", invoke_without_command=True, help="The families: what each is, and whether it learns.")
RECIPES = ROOT / "recipes" / "zoo"
GIB = 2**30

Name = Annotated[str, typer.Argument(help="A family that has a recipe in recipes/zoo.")]


@zoo.callback()
def families(context: typer.Context) -> None:
    """List the families: what each is, what it minimises and what it can do."""
    if context.invoked_subcommand:
        return
    from models.zoo import ZOO

    table = Table("family", "paradigm", "paper", "objective", "abilities", "recipe")
    for name, family in ZOO.items():
        place = RECIPES / f"{name}.yaml"
        recipe = str(place.relative_to(ROOT)) if place.exists() else "recipes/demo.yaml"
        recipe = "recipes/mini-stock.yaml" if name == "idefics3" else recipe
        table.add_row(
            name, family.paradigm, family.paper, family.objective, ", ".join(sorted(family.abilities)), recipe
        )
    Console(highlight=False).print(table)


@zoo.command()
def check(
    name: Name,
    seconds: Annotated[
        float | None, typer.Option(help="Core-seconds of training, instead of the recipe's steps.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="A folder for NAME.json and NAME.png.")] = None,
    assignments: Annotated[list[str], typer.Option("--set", help="Change a value of the recipe.")] = [],  # noqa: B006
) -> None:
    """Train a family and a control on shuffled pairs; print as JSON what it learned, with intervals."""
    from components.plan.sections import check as check_sections
    from pipelines.local_runner import run
    from pipelines.pretraining import VARIANTS, control_variants, zoo_check
    from vlmflow.config import recipes

    sections = control_variants(recipes.override(recipes.parse(recipe_of(name)), assignments), seconds)
    check_sections(sections)
    # Bound to stderr now: a run redirects sys.stderr.
    folder = run(zoo_check, sections, Console(file=sys.stderr, highlight=False))
    found = json.loads((folder / "learning_check" / "finding").read_text(encoding="utf-8"))
    records = {v: json.loads((folder / "steps" / f"pretrain-{v}.json").read_text("utf-8")) for v in VARIANTS}
    found["core_seconds"] = {variant: record["core_seconds"] for variant, record in records.items()}
    text = json.dumps(found, indent=2)
    typer.echo(text)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / f"{name}.json").write_text(text + "\n", encoding="utf-8")
        shutil.copyfile(folder / "learning_check" / "figure", out / f"{name}.png")


@zoo.command()
def size(
    name: Name,
    large: Annotated[bool, typer.Option(help="At the paper's scale: recipes/zoo/large.")] = True,
) -> None:
    """Build a family without its weights; print its parameters and the memory that training takes."""
    typer.echo(json.dumps(measure(name, large), indent=2))


def measure(name: str, large: bool) -> dict[str, Any]:
    """Parameters of a family as its recipe has it, and GiB of weights, gradients and AdamW's moments in float32."""
    import torch

    from models.zoo import ZOO
    from vlmflow.config import recipes
    from vlmflow.training.pretraining.config import PretrainConfig

    section = recipes.load(PretrainConfig, recipes.parse(recipe_of(name, large)), "pretrain")
    with torch.device("meta"):
        model, _ = recipes.call(ZOO[section.family].build, [], values=section.model, where="pretrain.model")
    learned = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    every = sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))
    return {
        "family": name,
        "parameters": model.num_parameters(),
        "learned": learned,
        "weights_gib": round(4 * every / GIB, 3),
        "training_gib": round(4 * (every + 3 * learned) / GIB, 3),
    }


def recipe_of(name: str, large: bool = False) -> str:
    """The path of a family's recipe.

    Raises:
        RecipeError: there is none of that name.
    """
    place = (RECIPES / "large" if large else RECIPES) / f"{name}.yaml"
    if not place.exists():
        known = sorted(path.stem for path in place.parent.glob("*.yaml"))
        raise RecipeError(
            f"{name}: no family with a recipe of its own; {nearest(name, known)}, all: {', '.join(known)}"
        )
    return str(place)
