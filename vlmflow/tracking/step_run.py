"""A step's record in MLflow: what went in, how long it took, what came out, the curve and the scores.

On this machine the runner writes it, beside the work. In a pod of a cluster the step itself does, under the run
of its pipeline, which is found by KFP's run id.
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from vlmflow.artifacts import provenance
from vlmflow.tracking import mlflow_run

KFP_RUN = "vlmflow.kfp_run"  # the tag of a pipeline's run and of its steps' runs
LOGGED = ("seconds", "peak_mb", "core_seconds")


def log(record: dict[str, Any], parent: str | None) -> str | None:
    """Write one nested run.

    Args:
        record: a step's record, as `vlmflow.runtime.step_runner` makes it.
        parent: id of the pipeline's run.

    Returns:
        The run's id; None where tracking is off.

    Raises:
        ServiceError: the store is out of reach.
    """
    from vlmflow.runtime.step import revision  # brings kfp with it

    made = record.get("outputs", {})
    outputs = {f"output.{name}": output["hash"] for name, output in made.items() if "hash" in output}
    inputs = {f"input.{name}": digest for name, digest in record.get("inputs", {}).items()}
    tags = {"vlmflow.step": record["step"], "code": record.get("code"), "status": record["status"], **inputs, **outputs}
    tags |= {"cached": record.get("cached", False), "data_revision": revisions(record) or None}
    tags |= {
        "git_revision": revision(),
        **provenance.tags({name: Path(output["path"]) for name, output in made.items()}),
    }
    tags |= {"error": record.get("error"), "image": record.get("image"), KFP_RUN: record.get("kfp_run")}
    section = record.get("section") or {}
    with mlflow_run.run(record["label"], parent_id=parent, params=section, tags=tags) as here:
        here.log_metrics({name: record[name] for name in LOGGED if record.get(name) is not None})
        for name, output in made.items():
            path = Path(output["path"])
            if is_page(path):
                with tempfile.TemporaryDirectory() as place:
                    here.log_artifact(shutil.copy2(path, Path(place) / f"{name}.html"))
            if (path / "scores.json").exists():
                scores = json.loads((path / "scores.json").read_text(encoding="utf-8"))["capabilities"]
                here.log_metrics({name.replace(" ", "_"): score["value"] for name, score in scores.items()})
            if (path / "card.json").exists():
                card = json.loads((path / "card.json").read_text(encoding="utf-8"))
                for point in card.get("curve", []) if not record.get("cached") else []:
                    here.log_metrics({"loss": point["loss"]}, step=int(point["step"]))
                here.log_artifact(path / "card.json", path.name)
    if here.id and record["status"] == "failed":
        with mlflow_run.answering(mlflow_run.store()):
            mlflow_run.client().set_terminated(here.id, "FAILED")
    return here.id


def pipeline_run(kfp_run: str) -> str:
    """The id of the MLflow run of a KFP run: the one that another step has made, or a new one.

    Two steps may begin at once and make two: the older one stays, and both know it by the same rule.

    Raises:
        ServiceError: the store is out of reach.
    """
    client = mlflow_run.client()
    with mlflow_run.answering(mlflow_run.store()):
        experiment = client.get_experiment_by_name(mlflow_run.EXPERIMENT)
        assert experiment is not None  # `client` has made it

        def oldest() -> str | None:
            tagged = f"tags.`{KFP_RUN}` = '{kfp_run}' and tags.`vlmflow.pipeline` = 'true'"
            found = client.search_runs([experiment.experiment_id], tagged)
            return min(found, key=lambda run: (run.info.start_time, run.info.run_id)).info.run_id if found else None

        if (known := oldest()) is not None:
            return known
        tags = {KFP_RUN: kfp_run, "vlmflow.pipeline": "true"}
        mine = client.create_run(experiment.experiment_id, run_name=f"kfp {kfp_run}", tags=tags).info.run_id
        chosen = oldest() or mine
        if chosen != mine:
            client.delete_run(mine)
        return chosen


def is_page(path: Path) -> bool:
    """Whether an artifact is an HTML page; KFP gives its file no ending."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(14).lower() == b"<!doctype html"


def revisions(record: dict[str, Any]) -> str:
    """The data revisions that the step's datasets name."""
    places = [*record["input_paths"].values(), *(output["path"] for output in record.get("outputs", {}).values())]
    cards = [Path(place) / "card.json" for place in places]
    named = {json.loads(card.read_text(encoding="utf-8")).get("revision") for card in cards if card.is_file()}
    return ", ".join(sorted(named - {None, ""}))
