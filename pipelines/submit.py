"""`vlmflow submit`: upload a pipeline to Kubeflow and start it, once or on a schedule."""

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
from pipelines.watch_run import wait_for_run
from vlmflow.config import recipes as recipes
from vlmflow.errors import RecipeError
from vlmflow.runtime.container_image import revision


@dataclass(frozen=True)
class RunRequest:
    """A pipeline and the parameters that differ from its defaults.

    title: the run's name in the UI: the pipeline's name and the recipe's title.
    """

    name: str
    parameters: dict[str, str]
    title: str


def build_request(name: str, recipe: str | None, assignments: list[str], data_rev: str | None) -> RunRequest:
    """Check the command's arguments; parameters that are not given keep the pipeline's defaults.

    Raises:
        RecipeError: the pipeline does not exist, the recipe belongs to another pipeline, or a value is invalid.
    """
    known = load_pipeline(name).component_spec.inputs
    if data_rev is not None and "data_rev" not in known:
        raise RecipeError(
            f"--data-rev {data_rev}: the pipeline {name!r} does not fetch versioned data; leave --data-rev out"
        )
    given = {} if data_rev is None else {"data_rev": data_rev}
    sections = recipes.override(recipes.parse(recipe or known["recipe"].default), assignments)
    if name == "zoo-check" and "pretrain" in sections:
        sections = control_variants(sections)
    expected = sections.get("pipeline", name)
    if expected != name and (expected, name) not in ON_REVISION.items():
        raise RecipeError(f"{recipe}: this recipe belongs to the pipeline {expected!r}, not to {name!r}")
    check(sections)
    if recipe or assignments:
        given["recipe"] = recipes.dump(sections)
    title = sections.get("title") or name
    return RunRequest(name, given, name if title == name else f"{name}: {title}")


def submit(
    server: Server,
    wanted: RunRequest,
    text: str,
    console: Console,
    *,
    experiment: str,
    cron: str | None = None,
    wait: bool = True,
    pause: float = 5.0,
) -> bool:
    """Upload the pipeline unless this version exists already, then start a run or schedule a recurring one.

    Args:
        text: the compiled pipeline (`pipelines.flow.compile`).
        cron: a cron expression of five fields, or of six with the seconds first; None starts one run now.
        wait: wait until the run ends.
        pause: seconds between two polls.

    Returns:
        False if the run that was waited for failed, else True.

    Raises:
        RecipeError: the cron expression is invalid.
        ServiceError: Kubeflow Pipelines does not answer or refuses the request.
    """
    schedule = _kfp_cron(cron)
    client: Any = server.client()  # Any: in its types every field may be None
    with server.translate_errors():
        namespace = server.namespace or client.get_user_namespace() or None
        identity, version = _upload_version(client, wanted.name, text, namespace, console)
        group = client.create_experiment(experiment, namespace=namespace).experiment_id
    if schedule:
        with server.translate_errors():
            job = _upsert_recurring_run(client, wanted, schedule, group, identity, version, console)
        console.print(server.url(f"recurringrun/details/{job}"))
        return True
    title = f"{wanted.title} {datetime.now():%Y-%m-%d %H:%M:%S}"
    with server.translate_errors():
        run = client.run_pipeline(group, title, params=wanted.parameters, pipeline_id=identity, version_id=version)
    console.print(f"{title}: {server.url(f'runs/details/{run.run_id}')}", soft_wrap=True)
    return wait_for_run(server, client, run.run_id, wanted.name, console, pause) if wait else True


def _upload_version(client: Any, name: str, text: str, namespace: str | None, console: Console) -> tuple[str, str]:
    """Return the ids of the pipeline and of the version with this content, uploading what is missing.

    A version is named by the code's revision and a hash of the content.
    """
    title = f"{revision()}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    found = client.list_pipelines(filter=_name_filter(name), namespace=namespace).pipelines
    if found:
        identity = found[0].pipeline_id
    else:
        description = load_pipeline(name).component_spec.description
        made = kfp_server_api.V2beta1Pipeline(display_name=name, description=description, namespace=namespace)
        identity = client.pipelines.pipeline_service_create_pipeline(made).pipeline_id
    versions = client.list_pipeline_versions(identity, filter=_name_filter(title)).pipeline_versions
    if versions:
        console.print(f"{name} {title}: already uploaded")
        return identity, versions[0].pipeline_version_id
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / f"{name}.yaml"
        file.write_text(text, encoding="utf-8")
        uploaded = client.upload_pipeline_version(str(file), title, pipeline_id=identity)
    console.print(f"{name} {title}: uploaded")
    return identity, uploaded.pipeline_version_id


def _upsert_recurring_run(
    client: Any, wanted: RunRequest, cron: str, group: str, identity: str, version: str, console: Console
) -> str:
    """Return the id of the recurring run of that title; replace one that differs, as KFP cannot update it."""
    for job in client.list_recurring_runs(experiment_id=group, filter=_name_filter(wanted.title)).recurring_runs or []:
        same = (
            job.trigger.cron_schedule.cron == cron
            and job.pipeline_version_reference.pipeline_version_id == version
            and (job.runtime_config.parameters or {}) == wanted.parameters
        )
        if same:
            console.print(f"{wanted.title}: already scheduled, {job.status or 'unchanged'}".lower())
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
    console.print(f"{wanted.title}: scheduled at {cron!r}")
    return made.recurring_run_id


def _kfp_cron(cron: str | None) -> str | None:
    """Convert to KFP's cron format, which has six fields, seconds first."""
    if cron is None or cron.startswith("@") or len(cron.split()) == 6:
        return cron
    if len(cron.split()) == 5:
        return f"0 {cron}"
    raise RecipeError(f"--cron {cron!r}: write a cron expression of five fields, such as '0 6 * * 1', or @daily")


def _name_filter(name: str) -> str:
    """Return KFP's filter for objects with that display name."""
    return json.dumps({"predicates": [{"operation": "EQUALS", "key": "display_name", "stringValue": name}]})
