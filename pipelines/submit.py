"""`vlmflow submit`: a pipeline to Kubeflow, as a run that is followed or as one that recurs."""

import hashlib
import json
import tempfile
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import kfp_server_api
from rich.console import Console

from components.plan.sections import check
from pipelines.catalog import ON_REVISION, load_pipeline
from pipelines.kubeflow import Server
from pipelines.pretraining import control_variants
from pipelines.watch_run import follow
from vlmflow.config import recipes as recipes
from vlmflow.errors import RecipeError
from vlmflow.runtime.step import revision


@dataclass(frozen=True)
class Order:
    """What is to run: a pipeline, and what its parameters are beside their defaults.

    title: how the run is called in the UI, by its pipeline and the recipe's title.
    """

    name: str
    parameters: dict[str, str]
    title: str


def order(name: str, recipe: str | None, assignments: list[str], data_rev: str | None) -> Order:
    """Read the order strictly; what the command does not say is left to the pipeline's defaults.

    Raises:
        RecipeError: no such pipeline, a recipe of another one, or a value that is impossible.
    """
    known = load_pipeline(name).component_spec.inputs
    if data_rev is not None and "data_rev" not in known:
        raise RecipeError(f"--data-rev {data_rev}: the pipeline {name!r} makes its own data; leave it out")
    given = {} if data_rev is None else {"data_rev": data_rev}
    sections = recipes.override(recipes.parse(recipe or known["recipe"].default), assignments)
    if name == "zoo-check" and "pretrain" in sections:
        sections = control_variants(sections)
    meant = sections.get("pipeline", name)
    if meant != name and (meant, name) not in ON_REVISION.items():
        raise RecipeError(f"{recipe}: it is a recipe of the pipeline {meant!r}, not of {name!r}")
    check(sections)
    if recipe or assignments:
        given["recipe"] = recipes.dump(sections)
    title = sections.get("title") or name
    return Order(name, given, name if title == name else f"{name}: {title}")


def submit(
    server: Server,
    wanted: Order,
    text: str,
    console: Console,
    *,
    experiment: str,
    every: str | None = None,
    wait: bool = True,
    pause: float = 5.0,
) -> bool:
    """Upload the pipeline, where this very content is not there yet, and start a run of it, or have it recur.

    Args:
        text: the pipeline, compiled (pipelines/flow.py).
        every: a cron expression of five fields, or of six with the seconds first; None runs it now.
        wait: follow the run until it ends.
        pause: seconds between two looks at it.

    Returns:
        Whether all went well, as far as it was followed.

    Raises:
        RecipeError: a cron expression that is none.
        ServiceError: Kubeflow Pipelines does not answer, or refuses.
    """
    cron = _cron(every)
    client: Any = server.client()  # to a type checker every field of what it returns may be None
    with server.answering():
        namespace = server.namespace or client.get_user_namespace() or None
        identity, version = _version(client, wanted.name, text, namespace, console)
        group = client.create_experiment(experiment, namespace=namespace).experiment_id
    if cron:
        with server.answering():
            job = _recurring(client, wanted, cron, group, identity, version, console)
        console.print(server.page(f"recurringrun/details/{job}"))
        return True
    title = f"{wanted.title} {datetime.now():%Y-%m-%d %H:%M:%S}"
    with server.answering():
        run = client.run_pipeline(group, title, params=wanted.parameters, pipeline_id=identity, version_id=version)
    console.print(f"{title}: {server.page(f'runs/details/{run.run_id}')}", soft_wrap=True)
    return follow(server, client, run.run_id, wanted.name, console, pause) if wait else True


def _version(client: Any, name: str, text: str, namespace: str | None, console: Console) -> tuple[str, str]:
    """The ids of the pipeline and of its version with this content, named by the code's revision and the content."""
    title = f"{revision()}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    found = client.list_pipelines(filter=_named(name), namespace=namespace).pipelines
    if found:
        identity = found[0].pipeline_id
    else:
        description = load_pipeline(name).component_spec.description
        made = kfp_server_api.V2beta1Pipeline(display_name=name, description=description, namespace=namespace)
        identity = client.pipelines.pipeline_service_create_pipeline(made).pipeline_id
    versions = client.list_pipeline_versions(identity, filter=_named(title)).pipeline_versions
    if versions:
        console.print(f"{name} {title}: it is there already")
        return identity, versions[0].pipeline_version_id
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / f"{name}.yaml"
        file.write_text(text, encoding="utf-8")
        uploaded = client.upload_pipeline_version(str(file), title, pipeline_id=identity)
    console.print(f"{name} {title}: uploaded")
    return identity, uploaded.pipeline_version_id


def _recurring(client: Any, wanted: Order, cron: str, group: str, identity: str, version: str, console: Console) -> str:
    """The id of the recurring run of that title; one that differs is replaced, for KFP cannot change it."""
    for job in client.list_recurring_runs(experiment_id=group, filter=_named(wanted.title)).recurring_runs or []:
        same = (
            job.trigger.cron_schedule.cron == cron
            and job.pipeline_version_reference.pipeline_version_id == version
            and (job.runtime_config.parameters or {}) == wanted.parameters
        )
        if same:
            console.print(f"{wanted.title}: recurs already, {job.status or 'as it is'}".lower())
            return job.recurring_run_id
        client.delete_recurring_run(job.recurring_run_id)
    made = client.create_recurring_run(
        group,
        wanted.title,
        cron_expression=cron,
        no_catchup=True,
        params=wanted.parameters,
        pipeline_id=identity,
        version_id=version,
    )
    console.print(f"{wanted.title}: recurs at {cron!r}")
    return made.recurring_run_id


def _cron(every: str | None) -> str | None:
    """KFP's cron expression has six fields, seconds first."""
    if every is None or every.startswith("@") or len(every.split()) == 6:
        return every
    if len(every.split()) == 5:
        return f"0 {every}"
    raise RecipeError(f"--every {every!r}: write a cron expression of five fields, such as '0 6 * * 1', or @daily")


def _named(name: str) -> str:
    """KFP's filter for things of that name."""
    return json.dumps({"predicates": [{"operation": "EQUALS", "key": "display_name", "stringValue": name}]})
