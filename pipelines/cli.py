"""The command line of vlmflow, a platform for training, aligning and serving vision-language models."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table
from rich.text import Text

from pipelines.zoo import zoo
from vlmflow.errors import EXIT_CODE, RecipeError, VlmflowError

console = Console(highlight=False, file=sys.stdout)  # bound to stdout now: a run redirects sys.stdout
app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)

Recipe = Annotated[str, typer.Argument(help="Path of a recipe, a YAML file.")]
Assignments = Annotated[
    list[str], typer.Option("--set", help="Override a value: section.key=value; section=null skips a step.")
]

Placement = Annotated[
    Path | None,
    typer.Option(
        help="Resources, image and secrets of each step, a YAML file.", show_default="infra/kubeflow/placement.yaml"
    ),
]


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        console.print(f"vlmflow {version('vlmflow')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Accept the options that stand before a command."""


@app.command()
def run(
    recipe: Recipe,
    assignments: Assignments = [],  # noqa: B006  typer copies the default
    data_rev: Annotated[
        str | None,
        typer.Option(
            help="Use the data of this DVC revision (see the recipe's `fetch` section) instead of building it."
        ),
    ] = None,
    containers: Annotated[
        bool,
        typer.Option("--containers", help="Run each step in its container, with docker or podman; see `make images`."),
    ] = False,
) -> None:
    """Run a recipe's pipeline on this machine (end-to-end unless the recipe sets `pipeline`)."""
    from pipelines.catalog import ON_REVISION, load_pipeline
    from vlmflow.config.sections import check_left_out

    sections = _checked(recipe, assignments)
    name = sections.get("pipeline", "end-to-end")
    if data_rev is not None and name not in ON_REVISION:
        raise RecipeError(
            f"--data-rev {data_rev}: the pipeline {name!r} does not fetch versioned data; leave --data-rev out"
        )
    from pipelines.flow import sections_read
    from pipelines.local_runner import run as start

    pipeline = load_pipeline(name if data_rev is None else ON_REVISION[name])
    check_left_out(sections, sections_read(pipeline))
    parameters = {} if data_rev is None else {"data_rev": data_rev}
    _show(start(pipeline, sections, console, containers, **parameters))


def _checked(recipe: str, assignments: list[str]) -> dict[str, Any]:
    """Return the recipe with the assignments applied, after checking every section."""
    from components.plan.sections import check
    from vlmflow.config import recipes

    sections = recipes.override(recipes.parse(recipe), assignments)
    check(sections)
    return sections


def _show(folder: Path) -> None:
    """Print the end of a run: scores of the last stage, skipped steps, the registered version, next commands."""
    from vlmflow.evaluation.scores import describe_examples

    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    results = summary["results"]
    if "sweep" in summary["steps"]:
        _compare(results["stages"])
        ended = f"{summary['seconds']:.0f} s, peak {summary['peak_mb']} MB. Run: {folder}    MLflow: vlmflow ui"
        console.print(ended, markup=False)
        return
    table = Table(
        "capability", "examples", "value", "95% interval", "blank", "shuffled",
        title="After the last stage", title_justify="left",
    )  # fmt: skip
    measured = {stage: scores for stage, scores in results["stages"].items() if scores}
    last = measured.get("align") or next(reversed(measured.values()), {})
    for name, score in last.items():
        arrow = "" if score["higher_is_better"] else " ↓"
        controls = [f"{score['controls'][kind]['value']:.2f}" for kind in ("blank", "shuffled")]
        table.add_row(
            f"{name} ({score['metric']}){arrow}",
            describe_examples(score),
            f"{score['value']:.3f}",
            f"{score['low']:.3f}–{score['high']:.3f}",
            *controls,
        )
        for more, value in score.get("secondary", {}).items():
            table.add_row(f"  {more}", "", f"{value['value']:.3f}", f"{value['low']:.3f}–{value['high']:.3f}", "", "")
    if last:
        console.print(table)
    for reason in dict.fromkeys(results["skipped"].values()):
        steps = ", ".join(step for step, why in results["skipped"].items() if why == reason)
        console.print(f"[yellow]skipped[/] {steps}: {escape(reason)}")
    gate, version = results["gate"], results["version"]
    if gate:
        console.print(
            f"gate: kept the {gate.get('chosen')} model"
            + "".join(f"\n  {reason}" for reason in gate.get("reasons", [])),
            markup=False,
        )
    if version:
        console.print(f"registered: {version.get('uri')} ({version.get('alias')})")
        console.print(f"Serve it: vlmflow serve {version.get('uri')}    MLflow: vlmflow ui")
    report = folder / "report.html"
    place = f"Report: {report}" if report.exists() else f"Run: {folder}"
    console.print(f"{summary['seconds']:.0f} s, peak {summary['peak_mb']} MB. {place}", markup=False)


def _compare(settings: dict[str, dict[str, Any]]) -> None:
    """Print a row for each setting of a sweep, with intervals; the best value is green."""
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
    name: Annotated[str, typer.Argument(help="Name of a step: ingest, validate, curate, instructions, …")],
    recipe: Annotated[str, typer.Option(help="Path of the recipe.")],
    inputs: Annotated[list[str], typer.Option("--in", help="An input artifact: name=path.")] = [],  # noqa: B006
    outputs: Annotated[list[str], typer.Option("--out", help="An output artifact: name=path.")] = [],  # noqa: B006
    parameters: Annotated[list[str], typer.Option("--param", help="Another parameter: name=value.")] = [],  # noqa: B006
    assignments: Assignments = [],  # noqa: B006
    sources: Annotated[
        Path | None,
        typer.Option(help="Folder for links to the files that the step reads, on which a stage of DVC can depend."),
    ] = None,
) -> None:
    """Run one step on artifacts given by path; `dvc repro` calls this."""
    from pipelines.step_cli import run_step
    from vlmflow.config import recipes

    sections = _checked(recipe, assignments)
    run_step(name, recipes.dump(sections), _pairs(inputs), _pairs(outputs), _pairs(parameters), sources)


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
    """Train one small model on the pairs left after each curation stage; print each stage's gain and cost."""
    sections = _checked(recipe, assignments)
    from pipelines.data_ablation import data_ablation as pipeline
    from pipelines.local_runner import run as start

    folder = start(pipeline, sections, console)
    found = json.loads((folder / "data_ablation" / "gains").read_text(encoding="utf-8"))
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
    console.print(f"Page: {folder / 'data_ablation' / 'page'}")


@app.command()
def export(
    dataset: Annotated[Path, typer.Argument(help="Folder of a dataset of pairs (shards and card.json).")],
    out: Annotated[str, typer.Argument(help="Target folder: a path, or a URL such as s3://bucket/shards.")],
    rows_per_shard: Annotated[int, typer.Option(min=1, help="Maximum number of pairs in a shard.")] = 10000,
) -> None:
    """Export pairs as webdataset shards."""
    from components.ingest.export import export_webdataset as write
    from vlmflow.artifacts.dataset import Dataset

    pairs = Dataset(dataset, "pairs")
    console.print(f"{write(pairs, out, rows_per_shard)} shards of {len(pairs)} pairs in {out}")


@app.command()
def compile(
    out: Annotated[Path, typer.Option(help="Folder for the YAML files.")] = Path("compiled"),
    placement: Placement = None,
) -> None:
    """Compile every pipeline to Kubeflow Pipelines IR, with the resources of each step."""
    from pipelines.catalog import PIPELINES, load_pipeline
    from pipelines.flow import compile
    from pipelines.placement import load

    places = load(placement)
    out.mkdir(parents=True, exist_ok=True)
    for name in PIPELINES:
        (out / f"{name}.yaml").write_text(compile(load_pipeline(name), places), encoding="utf-8")
        console.print(f"{out / name}.yaml")


@app.command()
def submit(
    name: Annotated[
        str, typer.Argument(metavar="PIPELINE", help="Name of a pipeline: end-to-end, train, pretraining, …")
    ],
    host: Annotated[str, typer.Option(help="URL of Kubeflow Pipelines; default: $KF_PIPELINES_ENDPOINT.")] = "",
    recipe: Annotated[
        str | None, typer.Option(help="Path of a recipe; default: the one compiled into the pipeline.")
    ] = None,
    assignments: Assignments = [],  # noqa: B006
    data_rev: Annotated[
        str | None, typer.Option(help="Data revision, for a pipeline that fetches versioned data.")
    ] = None,
    experiment: Annotated[str, typer.Option(help="KFP experiment of the run.")] = "vlmflow",
    namespace: Annotated[str, typer.Option(help="Profile namespace, in a multi-user Kubeflow.")] = "",
    token: Annotated[str, typer.Option(help="Bearer token; default: $VLMFLOW_KFP_TOKEN, or the pod's own.")] = "",
    placement: Placement = None,
    cron: Annotated[
        str | None, typer.Option(help="Schedule: a cron expression such as '0 6 * * 1', or @daily.")
    ] = None,
    wait: Annotated[bool, typer.Option(help="Wait for the run; exit code 1 if it fails.")] = True,
) -> None:
    """Run a pipeline on Kubeflow: upload it if it has changed, start it, and wait for it."""
    from pipelines.catalog import load_pipeline
    from pipelines.flow import compile
    from pipelines.kubeflow import Server
    from pipelines.placement import load
    from pipelines.submit import build_request
    from pipelines.submit import submit as start

    wanted = build_request(name, recipe, assignments, data_rev)
    server = Server.from_env(host, token, namespace)
    text = compile(load_pipeline(name), load(placement))
    if not start(server, wanted, text, console, experiment=experiment, cron=cron, wait=wait):
        raise typer.Exit(1)


@app.command()
def serve(
    reference: Annotated[
        str, typer.Argument(help="Model folder, run folder, or registered version such as models:/vlm@champion.")
    ],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="HTTP port; 0 takes a free one and prints it.")] = 8080,
    grpc_port: Annotated[int | None, typer.Option(help="gRPC port; no gRPC without it.")] = None,
    name: Annotated[
        str | None,
        typer.Option(help="Model name in requests.", show_default="the registered name, or vlm"),
    ] = None,
) -> None:
    """Serve a model over KServe V1, KServe V2 and OpenAI chat."""
    from vlmflow.serving.server import serve as start
    from vlmflow.tracking import mlflow_store

    mlflow_store.read_only()
    raise typer.Exit(start(reference, port, name, host, grpc_port))


@app.command()
def lineage(
    reference: Annotated[
        str,
        typer.Argument(
            help="Endpoint URL or manifest, models:/…, folder of a model, dataset or run, MLflow or KFP run ID, "
            "hash, data revision, or pair uid."
        ),
    ],
    up: Annotated[bool, typer.Option("--up", help="Show ancestors (default, except for a pair uid).")] = False,
    down: Annotated[bool, typer.Option("--down", help="Show descendants (default for a pair uid).")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a tree.")] = False,
    graph: Annotated[Path | None, typer.Option(help="Also draw the graph: a .svg, .png or .pdf file.")] = None,
) -> None:
    """Trace an artifact to its sources, or a pair to the models trained on it."""
    from pipelines.lineage.render_graph import draw
    from pipelines.lineage.trace import lineage as trace
    from vlmflow.tracking import mlflow_store

    mlflow_store.read_only()
    found = trace(reference, up=up, down=down)
    if graph is not None:
        draw(found.graph, graph)
    if as_json:
        console.print_json(json.dumps(found.content))
    else:
        console.print(found.text)


@app.command()
def takedown(
    uid: Annotated[str, typer.Argument(help="Uid of a pair.")],
    out: Annotated[Path, typer.Option(help="Exclusion list to append to.")] = Path("takedown.txt"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """List everything that used a pair and what to do; add the pair to an exclusion list for `curate.exclude`."""
    from pipelines.lineage.takedown import takedown as take

    found = take(uid, out)
    if as_json:
        console.print_json(json.dumps(found.content))
    else:
        console.print(found.text, soft_wrap=True, markup=False)  # commands must stay copyable


@app.command()
def explain(
    uid: Annotated[str, typer.Argument(help="Uid of a pair, or its first digits.")],
    where: Annotated[
        Path | None, typer.Option("--in", help="Folder of a ledger or a run; default: the latest run.")
    ] = None,
) -> None:
    """Show why curation kept or dropped a pair."""
    from vlmflow.artifacts.ledger import history
    from vlmflow.tracking import mlflow_store

    folder = where or mlflow_store.home() / "latest"
    inside = folder / "curate" / "ledger"
    for line in history(inside if inside.is_dir() else folder, uid):
        console.print(line, markup=False)


@app.command()
def ui(
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The HTTP port.")] = 5000,
) -> None:
    """Start the MLflow UI on the local store."""
    from vlmflow.serving.server import check_port
    from vlmflow.tracking import mlflow_store

    check_port(port, host)
    mlflow_store.read_only()
    mlflow_store.client()
    uri = mlflow_store.uri()
    if uri.startswith("http"):
        console.print(f"MLFLOW_TRACKING_URI is set; open {uri}")
        return
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--port", str(port)]
    command += [
        "--host",
        host,
        "--workers",
        "1",
        "--artifacts-destination",
        str(mlflow_store.home() / "mlartifacts"),
    ]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    server = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        raise typer.Exit(server.wait())
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)  # mlflow does not end its workers
        server.wait()


app.add_typer(zoo)


def main() -> None:
    """Entry point; a user's mistake is printed as one line, with exit code 2."""
    from vlmflow.runtime.process import configure_logging, limit_threads
    from vlmflow.runtime.space import space_errors

    configure_logging()
    limit_threads()
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, signal.default_int_handler)  # ends a command as Ctrl-C does
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal may be limited to ASCII
    try:
        with space_errors(Path.cwd()):
            app()
    except VlmflowError as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"error: {error}", markup=False)
        sys.exit(EXIT_CODE)
