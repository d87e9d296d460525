"""The command line: `vlmflow --help`."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from pipelines.placement import SHIPPED
from pipelines.zoo import zoo
from vlmflow.config import recipes as recipes
from vlmflow.errors import EXIT_CODE, RecipeError, VlmflowError

console = Console(highlight=False, file=sys.stdout)  # bound now: a run redirects what its libraries print
app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)

Recipe = Annotated[str, typer.Argument(help="A recipe: the path of a YAML file.")]
Assignments = Annotated[
    list[str], typer.Option("--set", help="Change a value: section.key=value; section=null leaves a step out.")
]

Placement = Annotated[
    Path, typer.Option(help="Where each step runs: a YAML file.", show_default="infra/kubeflow/placement.yaml")
]


@app.command()
def run(
    recipe: Recipe,
    assignments: Assignments = [],  # noqa: B006  typer copies it
    data_rev: Annotated[
        str | None, typer.Option(help="Train on the data of this revision (see `fetch` in the recipe); make none.")
    ] = None,
    containers: Annotated[
        bool, typer.Option("--containers", help="Each step in its container, by docker or podman; see `make images`.")
    ] = False,
) -> None:
    """Run the whole life on this machine, or the pipeline that the recipe names."""
    from components.plan.sections import check
    from pipelines.catalog import ON_REVISION, load_pipeline

    sections = recipes.override(recipes.parse(recipe), assignments)
    check(sections)
    name = sections.get("pipeline", "end-to-end")
    if data_rev is not None and name not in ON_REVISION:
        raise RecipeError(f"--data-rev {data_rev}: the pipeline {name!r} makes its own data; leave it out")
    from pipelines.local_runner import run as start

    if data_rev is None:
        _show(start(load_pipeline(name), sections, console, containers))
    else:
        _show(start(load_pipeline(ON_REVISION[name]), sections, console, containers, data_rev=data_rev))


def _show(folder: Path) -> None:
    """The end of a run: what the served model can do, what was left out, and where to go on."""
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    results = summary["results"]
    if "sweep" in summary["steps"]:
        _compare(results["stages"])
        console.print(f"{summary['seconds']:.0f} s, peak {summary['peak_mb']} MB. Run: {folder}    MLflow: vlmflow ui")
        return
    table = Table(
        "capability", "value", "95% interval", "blank", "shuffled", title="After the last stage", title_justify="left"
    )
    last = results["stages"].get("align") or next(reversed(results["stages"].values()), {})
    for name, score in last.items():
        arrow = "" if score["higher_is_better"] else " ↓"
        controls = [f"{score['controls'][kind]['value']:.2f}" for kind in ("blank", "shuffled")]
        table.add_row(
            f"{name} ({score['metric']}){arrow}",
            f"{score['value']:.3f}",
            f"{score['low']:.3f}–{score['high']:.3f}",
            *controls,
        )
    console.print(table)
    for step, reason in results["skipped"].items():
        console.print(f"[yellow]skipped[/] {step}: {reason}")
    gate, version = results["gate"], results["version"]
    if gate:
        console.print(
            f"gate: kept the {gate.get('chosen')} model"
            + "".join(f"\n  {reason}" for reason in gate.get("reasons", []))
        )
    if version:
        console.print(f"registered: {version.get('uri')} ({version.get('alias')})")
        console.print(f"Serve it: vlmflow serve {version.get('uri')}    MLflow: vlmflow ui")
    report = folder / "report.html"
    place = f"Report: {report}" if report.exists() else f"Run: {folder}"
    console.print(f"{summary['seconds']:.0f} s, peak {summary['peak_mb']} MB. {place}")


def _compare(settings: dict[str, dict[str, Any]]) -> None:
    """A row for each setting of a sweep, with the interval of each capability; the best value is green."""
    first = next(iter(settings.values()))
    table = Table(Column("setting", overflow="fold"), *(f"{name} ({score['metric']})" for name, score in first.items()))
    ways = {name: max if score["higher_is_better"] else min for name, score in first.items()}
    best = {name: way(found[name]["value"] for found in settings.values()) for name, way in ways.items()}
    for setting, found in settings.items():
        cells = [f"{score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}]" for score in found.values()]
        marked = [found[name]["value"] == value for name, value in best.items()]
        table.add_row(setting, *(Text(c, "green" if m else "") for c, m in zip(cells, marked, strict=True)))
    console.print(table)


@app.command()
def step(
    name: Annotated[str, typer.Argument(help="A step: ingest, validate, curate, tasks, …")],
    recipe: Annotated[str, typer.Option(help="The recipe's path.")],
    inputs: Annotated[list[str], typer.Option("--in", help="An input artifact: name=path.")] = [],  # noqa: B006
    outputs: Annotated[list[str], typer.Option("--out", help="An output artifact: name=path.")] = [],  # noqa: B006
    parameters: Annotated[list[str], typer.Option("--param", help="A further parameter: name=value.")] = [],  # noqa: B006
    assignments: Assignments = [],  # noqa: B006
) -> None:
    """Run one step on artifacts given by path: what `dvc repro` calls."""
    from components.plan.sections import check
    from pipelines.step_cli import run_step

    sections = recipes.override(recipes.parse(recipe), assignments)
    check(sections)
    run_step(name, recipes.dump(sections), _pairs(inputs), _pairs(outputs), _pairs(parameters))


def _pairs(given: list[str]) -> dict[str, str]:
    found = {}
    for item in given:
        name, equals, value = item.partition("=")
        if not equals:
            raise RecipeError(f"{item}: write name=path")
        found[name] = value
    return found


@app.command()
def data_ablation(recipe: Recipe = "recipes/data-ablation.yaml", assignments: Assignments = []) -> None:  # noqa: B006
    """Train one small model on what each stage of curation left, and say what each stage bought and cost."""
    from components.plan.sections import check

    sections = recipes.override(recipes.parse(recipe), assignments)
    check(sections)
    from pipelines.data_ablation import data_ablation as pipeline
    from pipelines.local_runner import run as start

    folder = start(pipeline, sections, console)
    found = json.loads((folder / "data_ablation" / "returns").read_text(encoding="utf-8"))
    names = found["capabilities"]
    table = Table("stage", "dropped", "seconds", *[head for name in names for head in (name, "over raw")])
    for stage in found["stages"]:
        cells = [stage["stage"], f"{stage['dropped']:,}", "" if stage["seconds"] is None else f"{stage['seconds']:.1f}"]
        for name in names:
            gain = stage["gains"]["over_raw"][name]
            cells += [
                f"{stage['capabilities'][name]['value']:.3f}",
                f"{gain['difference']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]",
            ]
        table.add_row(*cells)
    console.print(table)
    console.print(f"Page: {folder / 'roi' / 'page'}")


@app.command()
def export(
    dataset: Annotated[Path, typer.Argument(help="A dataset of pairs: the folder of its shards and card.json.")],
    out: Annotated[str, typer.Argument(help="A folder, here or at any address such as s3://bucket/shards.")],
    rows_per_shard: Annotated[int, typer.Option(min=1, help="Pairs in a shard, at most.")] = 10000,
) -> None:
    """Write pairs as webdataset shards, for other people's loaders."""
    from components.ingest.export import export as write
    from vlmflow.artifacts.dataset import Dataset

    pairs = Dataset(dataset, "pairs")
    console.print(f"{write(pairs, out, rows_per_shard)} shards of {len(pairs)} pairs in {out}")


@app.command()
def compile(
    out: Annotated[Path, typer.Option(help="The folder of the YAML files.")] = Path("compiled"),
    placement: Placement = SHIPPED,
) -> None:
    """Write every pipeline as Kubeflow Pipelines IR, each step in its place."""
    from pipelines.catalog import PIPELINES, load_pipeline
    from pipelines.flow import compiled
    from pipelines.placement import load

    places = load(placement)
    out.mkdir(parents=True, exist_ok=True)
    for name in PIPELINES:
        (out / f"{name}.yaml").write_text(compiled(load_pipeline(name), places), encoding="utf-8")
        console.print(f"{out / name}.yaml")


@app.command()
def submit(
    name: Annotated[str, typer.Argument(metavar="PIPELINE", help="end-to-end, train, pretraining, …")],
    host: Annotated[str, typer.Option(help="Kubeflow Pipelines; by default $KF_PIPELINES_ENDPOINT.")] = "",
    recipe: Annotated[str | None, typer.Option(help="A recipe's path; by default the one that is compiled in.")] = None,
    assignments: Assignments = [],  # noqa: B006
    data_rev: Annotated[
        str | None, typer.Option(help="The data of this revision, for a pipeline that fetches.")
    ] = None,
    experiment: Annotated[str, typer.Option(help="KFP's experiment, which groups runs.")] = "vlmflow",
    namespace: Annotated[str, typer.Option(help="The profile, in a Kubeflow of several users.")] = "",
    token: Annotated[str, typer.Option(help="A bearer token; by default $VLMFLOW_KFP_TOKEN, or the pod's own.")] = "",
    placement: Placement = SHIPPED,
    every: Annotated[str | None, typer.Option(help="Recur: a cron expression, such as '0 6 * * 1', or @daily.")] = None,
    wait: Annotated[bool, typer.Option(help="Follow the run; the exit code is 1 if it fails.")] = True,
) -> None:
    """Run a pipeline on Kubeflow: upload it where it has changed, start it, and follow it."""
    from pipelines.catalog import load_pipeline
    from pipelines.flow import compiled
    from pipelines.kubeflow import Server
    from pipelines.placement import load
    from pipelines.submit import order
    from pipelines.submit import submit as start

    wanted = order(name, recipe, assignments, data_rev)
    server = Server.at(host, token, namespace)
    text = compiled(load_pipeline(name), load(placement))
    if not start(server, wanted, text, console, experiment=experiment, every=every, wait=wait):
        raise typer.Exit(1)


@app.command()
def serve(
    reference: Annotated[str, typer.Argument(help="A model folder, a run's folder, or models:/vlm@champion.")],
    port: Annotated[int, typer.Option(help="The HTTP port.")] = 8080,
    name: Annotated[str, typer.Option(help="The model's name in requests.")] = "vlm",
) -> None:
    """Serve a model: KServe's V1 and V2, and OpenAI chat."""
    from vlmflow.serving.server import serve as start

    raise typer.Exit(start(reference, port, name))


@app.command()
def lineage(
    reference: Annotated[
        str,
        typer.Argument(
            help="An endpoint's address or manifest, models:/…, a folder of a model, a dataset or a run, the id of a "
            "run of MLflow or KFP, a hash, a data revision, or a pair's uid."
        ),
    ],
    up: Annotated[bool, typer.Option("--up", help="What it came from; the default, but for a uid.")] = False,
    down: Annotated[bool, typer.Option("--down", help="What it went into; the default for a uid.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a tree.")] = False,
    picture: Annotated[Path | None, typer.Option(help="Draw it too: a file ending in .svg, .png or .pdf.")] = None,
) -> None:
    """What something came from, and what was made of it; for a uid, what was learned from it."""
    from pipelines.lineage.render_graph import draw
    from pipelines.lineage.trace import lineage as trace

    found = trace(reference, up=up, down=down)
    if picture is not None:
        draw(found.graph, picture)
    if as_json:
        console.print_json(json.dumps(found.content))
    else:
        console.print(found.text)


@app.command()
def takedown(
    uid: Annotated[str, typer.Argument(help="A pair's uid.")],
    out: Annotated[Path, typer.Option(help="The exclusion list that it is added to.")] = Path("takedown.txt"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """What used a pair, and what to do about each; `curate.exclude` keeps what the list holds from coming back."""
    from pipelines.lineage.takedown import takedown as take

    found = take(uid, out)
    if as_json:
        console.print_json(json.dumps(found.content))
    else:
        console.print(found.text, soft_wrap=True, markup=False)  # commands are there to be copied


@app.command()
def explain(
    uid: Annotated[str, typer.Argument(help="A pair's uid, or how it begins.")],
    where: Annotated[
        Path | None, typer.Option("--in", help="A ledger's folder, or a run's; by default the latest run's.")
    ] = None,
) -> None:
    """What curation did to one pair, and why."""
    from vlmflow.artifacts.ledger import history
    from vlmflow.tracking import mlflow_run

    folder = where or mlflow_run.home() / "latest"
    inside = folder / "curate" / "ledger"
    for line in history(inside if inside.is_dir() else folder, uid):
        console.print(line, markup=False)


@app.command()
def ui(port: Annotated[int, typer.Option(help="The HTTP port.")] = 5000) -> None:
    """Open MLflow's pages on the runs' own store."""
    from vlmflow.serving.server import check_port
    from vlmflow.tracking import mlflow_run

    check_port(port)
    mlflow_run.client()
    uri = mlflow_run.store()
    if uri.startswith("http"):
        console.print(f"MLFLOW_TRACKING_URI is set; its pages are at {uri}")
        return
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--port", str(port)]
    command += [
        "--host",
        "127.0.0.1",
        "--workers",
        "1",
        "--artifacts-destination",
        str(mlflow_run.home() / "mlartifacts"),
    ]
    raise typer.Exit(
        subprocess.run(command, env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}).returncode
    )


app.add_typer(zoo)


def main() -> None:
    """Entry point: a user's mistake is one line and exit code 2."""
    from vlmflow.runtime.process import configure_logging, one_thread

    configure_logging()
    one_thread()
    try:
        app()
    except VlmflowError as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"error: {error}", markup=False)
        sys.exit(EXIT_CODE)
