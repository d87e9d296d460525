"""The history that MLflow tells: the steps' runs by their tags, and the registered versions."""

import json
from logging import getLogger

from pipelines.lineage.history import History, Step
from vlmflow.artifacts.provenance import TAG, Origin
from vlmflow.tracking import mlflow_run
from vlmflow.tracking.registry import Version, versions
from vlmflow.tracking.step_run import KFP_RUN

logger = getLogger(__name__)

_PAGE = 1000


def read(history: History) -> None:
    """Add what the steps' runs made, and the versions.

    Raises:
        ServiceError: the store is out of reach.
    """
    client = mlflow_run.client()
    with mlflow_run.answering(mlflow_run.store()):
        experiment = client.get_experiment_by_name(mlflow_run.EXPERIMENT)
        assert experiment is not None  # `client` has made it
        token: str | None = None
        while True:  # the store hands runs out in pages
            page = client.search_runs([experiment.experiment_id], max_results=_PAGE, page_token=token)
            for run in page:
                if "vlmflow.step" in run.data.tags:
                    _ran(history, run.info.run_id, run.info.run_name or "", run.data.tags)
            token = page.token
            if not token:
                break
        for registered in client.search_registered_models():
            for version in versions(registered.name):
                place = client.get_model_version_download_uri(version.name, version.version)
                _registered(history, version, place)


def _ran(history: History, run: str, label: str, tags: dict[str, str]) -> None:
    contents: dict[str, list[str]] = {}
    for name, text in tags.items():
        if name.startswith(TAG):
            told = json.loads(text)
            ids = [history.add(Origin(**one), told["place"]).id for one in told["origins"]]
            contents[tags.get(f"output.{name.removeprefix(TAG)}", name)] = ids
    step = Step(
        label=label,
        mlflow_run=run,
        pipeline_run=tags.get("mlflow.parentRunId", ""),
        kfp_run=tags.get(KFP_RUN, ""),
        code=tags.get("git_revision", ""),
        image=tags.get("image", ""),
        cached=tags.get("cached") == "True",
        inputs=[value for name, value in tags.items() if name.startswith("input.")],
    )
    history.ran(step, contents)


def _registered(history: History, version: Version, place: str) -> None:
    """A version's tags tell of the checkpoint too, which may lie nowhere else any more."""
    tags = version.tags
    facts = {
        "mlflow_run": version.run_id,
        "code": tags.get("git_revision", ""),
        **{name: tags[name] for name in ("kfp_run", "image") if name in tags},
    }
    history.add(
        Origin(
            id=version.uri,
            kind="version",
            name=", ".join(version.aliases),
            step="register",
            parents=[version.model_hash],
            facts=facts,
        ),
        place,
    )
    parents = [tags.get("parent", ""), *tags.get("datasets", "").split(",")]
    checkpoint = Origin(
        id=version.model_hash,
        kind="model",
        name=tags.get("family", ""),
        step=tags.get("step", ""),
        parents=[parent for parent in parents if parent],
    )
    history.add(checkpoint)
