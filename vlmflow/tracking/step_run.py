"""Log a step's record to MLflow: inputs, duration, outputs, loss curve and scores.

On this machine the local runner does it, in parallel to the steps. In a pod of a cluster the step does it, under the
MLflow run of its pipeline, which is found by the KFP run ID.
"""

import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from vlmflow.artifacts import provenance
from vlmflow.runtime.container_image import revision
from vlmflow.tracking import mlflow_run, mlflow_store

KFP_RUN = "vlmflow.kfp_run"  # tag of a pipeline's run and of its steps' runs
STEP_METRICS = ("seconds", "peak_mb", "core_seconds")


def log_step(record: dict[str, Any], parent: str | None, own_run: str = "") -> str | None:
    """Log a step's record as a nested run.

    Args:
        record: as `vlmflow.runtime.step_record` creates it.
        parent: ID of the pipeline's run.
        own_run: ID of the step's run, if it exists already.

    Returns:
        The ID of the step's run; None if tracking is off.

    Raises:
        ServiceError: the store is unreachable.
    """
    section = record.get("section") or {}
    with mlflow_run.start_run(
        record["label"], run_id=own_run, parent_id=parent, params=section, tags=_tags(record)
    ) as run:
        run.log_metrics({name: record[name] for name in STEP_METRICS if record.get(name) is not None})
        run.log_datasets(datasets := _datasets(record))
        for name, output in record.get("outputs", {}).items():
            _log_output(run, name, Path(output["path"]), cached=record.get("cached", False))
    if run.id and parent:
        pipeline = mlflow_run.Run(mlflow_store.client(), mlflow_store.uri(), parent)
        pipeline.log_datasets(datasets)
        pipeline.log_metrics(_pipeline_scores(record))
    if run.id and record["status"] == "failed":
        with mlflow_store.service_errors():
            mlflow_store.client().set_terminated(run.id, "FAILED")
    return run.id


def _tags(record: dict[str, Any]) -> dict[str, Any]:
    outputs = record.get("outputs", {})
    return {
        "vlmflow.step": record["step"],
        "code": record.get("code"),
        "status": record["status"],
        **{f"input.{name}": digest for name, digest in record.get("inputs", {}).items()},
        **{f"output.{name}": output["hash"] for name, output in outputs.items() if "hash" in output},
        "cached": record.get("cached", False),
        "data_revision": data_revisions(record) or None,
        "git_revision": revision(),
        **provenance.origin_tags({name: Path(output["path"]) for name, output in outputs.items()}),
        "error": record.get("error"),
        "mlflow.note.content": record.get("error"),
        "image": record.get("image"),
        KFP_RUN: record.get("kfp_run"),
    }


def _log_output(run: mlflow_run.Run | mlflow_run.NullRun, name: str, path: Path, *, cached: bool) -> None:
    """Log an HTML page as a file, scores as metrics, and a card as a file and, if the step ran, its training curve.

    The metrics of a curve (loss, learning rate, gradient norm, margins of DPO, …) have the output's name in front,
    unless it is `model`: DPO and its control are outputs of one step.
    """
    if is_html_page(path):
        with tempfile.TemporaryDirectory() as folder:
            run.log_artifact(shutil.copy2(path, Path(folder) / f"{name}.html"))
    if (path / "scores.json").exists():
        scores = json.loads((path / "scores.json").read_text(encoding="utf-8"))["capabilities"]
        run.log_metrics({name.replace(" ", "_"): score["value"] for name, score in scores.items()})
    if (path / "card.json").exists():
        card = json.loads((path / "card.json").read_text(encoding="utf-8"))
        prefix = "" if name == "model" else f"{name}/"
        for point in card.get("curve", []) if not cached else []:
            values = {f"{prefix}{key}": value for key, value in point.items() if key != "step"}
            run.log_metrics(values, step=int(point["step"]))
        run.log_artifact(path / "card.json", path.name)


def _pipeline_scores(record: dict[str, Any]) -> dict[str, float]:
    """The metrics of the pipeline's run: scores of each stage (`align/vqa`), and of the gate's chosen model (`vqa`)."""
    found = {}
    for output in record.get("outputs", {}).values():
        file = Path(output["path"]) / "scores.json"
        if file.exists():
            scores = json.loads(file.read_text(encoding="utf-8"))
            prefix = "" if record["step"] == "gate" else f"{scores.get('stage') or record['label']}/"
            for name, score in scores["capabilities"].items():
                metric = f"{prefix}{name.replace(' ', '_')}"
                found[re.sub(r"[^\w.: /-]", "", metric)] = score["value"]  # a sweep's stages are JSON
    return found


def _datasets(record: dict[str, Any]) -> list[Any]:
    """The datasets among the step's inputs, as MLflow's own entities, named after the step that wrote them."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    found = []
    for name, path in record["input_paths"].items():
        card = Path(path) / "card.json"
        content = json.loads(card.read_text(encoding="utf-8")) if card.is_file() else {}
        if "schema" in content:  # a checkpoint has a card too
            title = f"{content.get('step') or name} {content['schema']}"
            profile = json.dumps({"rows": content["rows"], "revision": content.get("revision", "")})
            digest = str(record.get("inputs", {}).get(name, "unknown"))[:36]  # MLflow's limit
            dataset = Dataset(title, digest, "local", json.dumps({"uri": str(path)}), profile=profile)
            found.append(DatasetInput(dataset, [InputTag("mlflow.data.context", record["step"])]))
    return found


def find_or_create_pipeline_run(kfp_run: str) -> str:
    """Return the ID of the MLflow run of a KFP run; the first step creates it.

    If two steps start at once and both create one, both choose the older one, and the other is deleted.

    Raises:
        ServiceError: the store is unreachable.
    """
    client = mlflow_store.client()
    with mlflow_store.service_errors():
        experiments = mlflow_store.experiment_ids(client)

        def find_oldest() -> str | None:
            query = f"tags.`{KFP_RUN}` = '{kfp_run}' and tags.`vlmflow.pipeline` = 'true'"
            runs = client.search_runs(experiments, query)
            return min(runs, key=lambda run: (run.info.start_time, run.info.run_id)).info.run_id if runs else None

        if (existing := find_oldest()) is not None:
            return existing
        tags = {KFP_RUN: kfp_run, "vlmflow.pipeline": "true"}
        created = client.create_run(
            mlflow_store.experiment_id(client), run_name=f"kfp {kfp_run}", tags=tags
        ).info.run_id
        chosen = find_oldest() or created
        if chosen != created:
            client.delete_run(created)
        return chosen


def adopt_pipeline_run(kfp_run: str, own_run: str) -> str:
    """Return the ID of the MLflow run that KFP's plugin has created for the KFP run of a step with the run `own_run`.

    It is the outermost parent: between them may be the run of a loop. It gets the tags by which
    `find_or_create_pipeline_run` finds it.

    Raises:
        ServiceError: the store is unreachable, or has no such run.
    """
    client = mlflow_store.client()
    with mlflow_store.service_errors():
        outermost = own_run
        while parent := client.get_run(outermost).data.tags.get("mlflow.parentRunId"):
            outermost = parent
        for name, value in {KFP_RUN: kfp_run, "vlmflow.pipeline": "true"}.items():
            client.set_tag(outermost, name, value)
    return outermost


def is_html_page(path: Path) -> bool:
    """Return whether an artifact is an HTML page; KFP's files have no suffix."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(14).lower() == b"<!doctype html"


def data_revisions(record: dict[str, Any]) -> str:
    """Return the data revisions in the cards of the step's datasets, separated by commas."""
    paths = [*record["input_paths"].values(), *(output["path"] for output in record.get("outputs", {}).values())]
    cards = [Path(path) / "card.json" for path in paths]
    revisions = {json.loads(card.read_text(encoding="utf-8")).get("revision") for card in cards if card.is_file()}
    return ", ".join(sorted(revisions - {None, ""}))
