"""Lineage from MLflow: the steps' runs by their tags, and the registered model versions."""

import json
from logging import getLogger

from pipelines.lineage.history import History, Step
from vlmflow.artifacts.provenance import ORIGIN_TAG, Origin
from vlmflow.tracking import mlflow_store
from vlmflow.tracking.registry import Version, list_versions
from vlmflow.tracking.step_run import KFP_RUN

logger = getLogger(__name__)

_PAGE = 1000


def read(history: History) -> None:
    """Add the outputs of the steps' runs, and the registered versions.

    Raises:
        ServiceError: MLflow does not answer.
    """
    client = mlflow_store.client()
    with mlflow_store.service_errors():
        experiments = mlflow_store.experiment_ids(client)
        token: str | None = None
        while True:  # search_runs is paginated
            page = client.search_runs(experiments, "tags.`vlmflow.step` != ''", max_results=_PAGE, page_token=token)
            for run in page:
                _add_step(history, run.info.run_id, run.info.run_name or "", run.data.tags)
            token = page.token
            if not token:
                break
        for registered in client.search_registered_models():
            for version in list_versions(registered.name):
                place = client.get_model_version_download_uri(version.name, version.version)
                _add_version(history, version, place)


def _add_step(history: History, run: str, label: str, tags: dict[str, str]) -> None:
    contents: dict[str, list[str]] = {}
    for name, text in tags.items():
        if name.startswith(ORIGIN_TAG):
            origins_tag = json.loads(text)
            ids = [history.add(Origin(**one), origins_tag["place"]).id for one in origins_tag["origins"]]
            contents[tags.get(f"output.{name.removeprefix(ORIGIN_TAG)}", name)] = ids
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
    history.add_step(step, contents)


def _add_version(history: History, version: Version, place: str) -> None:
    """Add the version and its checkpoint, whose other copies may be deleted by now."""
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
