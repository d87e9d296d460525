"""`vlmflow zoo`: list the model families, measure their size, and check that they learn."""

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

zoo = typer.Typer(name="zoo", invoke_without_command=True, help="List the model families, or check one of them.")
RECIPES = ROOT / "recipes" / "zoo"
GIB = 2**30

Name = Annotated[str, typer.Argument(help="A family with a recipe in recipes/zoo.")]


@zoo.callback()
def families(context: typer.Context) -> None:
    """List the model families with their paradigm, objective, abilities and recipe."""
    if context.invoked_subcommand:
        return
    from models.zoo import ZOO

    table = Table("family", "paradigm", "paper", "objective", "abilities", "recipe")
    for name, family in ZOO.items():
        path = RECIPES / f"{name}.yaml"
        recipe = str(path.relative_to(ROOT)) if path.exists() else "recipes/demo.yaml"
        recipe = "recipes/mini-stock.yaml" if name == "idefics3" else recipe
        table.add_row(
            name, family.paradigm, family.paper, family.objective, ", ".join(sorted(family.abilities)), recipe
        )
    Console(highlight=False).print(table)


@zoo.command()
def check(
    name: Name,
    seconds: Annotated[
        float | None, typer.Option(help="Train for this many core-seconds instead of the recipe's number of steps.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write NAME.json and NAME.png to this folder.")] = None,
    assignments: Annotated[
        list[str], typer.Option("--set", help="Override a value of the recipe, as section.key=value.")
    ] = [],  # noqa: B006
) -> None:
    """Train a family and a control on shuffled pairs; print the results with intervals as JSON."""
    from components.plan.sections import check as check_sections
    from pipelines.local_runner import run
    from pipelines.pretraining import VARIANTS, control_variants, zoo_check
    from vlmflow.config import recipes

    sections = control_variants(recipes.override(recipes.parse(recipe_of(name)), assignments), seconds)
    check_sections(sections)
    # Bind the console to the current stderr: a run redirects sys.stderr.
    folder = run(zoo_check, sections, Console(file=sys.stderr, highlight=False))
    results = json.loads((folder / "learning_check" / "finding").read_text(encoding="utf-8"))
    records = {v: json.loads((folder / "steps" / f"pretrain-{v}.json").read_text("utf-8")) for v in VARIANTS}
    results["core_seconds"] = {variant: record["core_seconds"] for variant, record in records.items()}
    text = json.dumps(results, indent=2)
    typer.echo(text)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / f"{name}.json").write_text(text + "\n", encoding="utf-8")
        shutil.copyfile(folder / "learning_check" / "figure", out / f"{name}.png")


@zoo.command()
def size(
    name: Name,
    large: Annotated[bool, typer.Option(help="Use the recipe at the paper's scale, from recipes/zoo/large.")] = True,
) -> None:
    """Print a family's number of parameters and the memory to train it, without allocating weights."""
    typer.echo(json.dumps(measure(name, large), indent=2))


def measure(name: str, large: bool) -> dict[str, Any]:
    """Count a family's parameters with its recipe's sizes, and the memory to train it.

    Memory is in GiB, of weights, gradients and AdamW's two moments in float32, without activations.
    """
    import torch

    from models.zoo import ZOO
    from vlmflow.config import recipes
    from vlmflow.training.pretraining.config import PretrainConfig

    section = recipes.load(PretrainConfig, recipes.parse(recipe_of(name, large)), "pretrain")
    with torch.device("meta"):
        model, _ = recipes.call(ZOO[section.family].build, [], values=section.model, where="pretrain.model")
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    total = sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))
    return {
        "family": name,
        "parameters": model.num_parameters(),
        "learned": trainable,
        "weights_gib": round(4 * total / GIB, 3),
        "training_gib": round(4 * (total + 3 * trainable) / GIB, 3),
    }


def recipe_of(name: str, large: bool = False) -> str:
    """Return the path of a family's recipe.

    Raises:
        RecipeError: no recipe has this name.
    """
    path = (RECIPES / "large" if large else RECIPES) / f"{name}.yaml"
    if not path.exists():
        known = sorted(recipe.stem for recipe in path.parent.glob("*.yaml"))
        raise RecipeError(
            f"{name}: no recipe of this name in {path.parent.relative_to(ROOT)}; {nearest(name, known)}, "
            f"all: {', '.join(known)}"
        )
    return str(path)
