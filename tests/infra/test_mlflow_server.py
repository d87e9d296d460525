"""MLflow's server as its manifest has it, on a real PostgreSQL and a store that checks who writes; and what breaks."""

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from components.deploy import storage
from components.register.registration import register
from tests.infra.conftest import build, find
from tests.infra.fake_services import Postgres, Server, Store, database_uri
from tests.register import test_registration
from vlmflow.artifacts.checkpoint import Checkpoint
from vlmflow.errors import ModelError, ServiceError
from vlmflow.tracking import mlflow_run
from vlmflow.tracking.registry import RegistryConfig, download, versions

artifacts = test_registration.artifacts  # a checkpoint as the gate leaves it


@dataclass
class Cluster:
    """The three that run."""

    postgres: Postgres
    store: Store
    server: Server


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    postgres = Postgres(password="0123abcd")
    store = Store(tmp_path_factory.mktemp("store"), bucket="vlmflow")
    started: list[Any] = [postgres, store]
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ENDPOINT_URL", "AWS_PROFILE"):
            patch.delenv(name, raising=False)
        try:
            postgres.start()
            store.start()
            secrets = {
                "mlflow-database": {"uri": database_uri(postgres.password, postgres.port)},
                "mlflow-s3": {"accesskey": store.accesskey, "secretkey": store.secretkey},
            }
            server = Server(tmp_path_factory.mktemp("server"), secrets, store.url)
            started.append(server)
            server.start()
            patch.setenv("MLFLOW_TRACKING_URI", server.url)
            patch.setenv("VLMFLOW_MLFLOW_WAIT", "1")
            patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
            yield Cluster(postgres, store, server)
        finally:
            for service in reversed(started):
                service.stop()
            shutil.rmtree(postgres.folder)


def enter(artifacts: Path, out: Path, name: str) -> dict[str, Any]:
    model, scores, verdict = (artifacts / part for part in ("model", "scores", "verdict"))
    return register(model, scores, verdict, out, "seed: 0\n", RegistryConfig(name=name), revision="abc")


def refusal(cluster: Cluster, work: Callable[[], object]) -> str:
    """The one line with which `work` fails."""
    with pytest.raises(ServiceError) as caught:
        work()
    said = str(caught.value)
    assert "\n" not in said and said.startswith(f"MLflow at {cluster.server.url}: ")
    return said


# The tests go on from one another: a server takes its time to start, and to prove that it remembers it has to.


def test_what_is_kept_lies_in_the_bucket(
    cluster: Cluster, artifacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "note.txt").write_text("hello")
    with mlflow_run.run("align", params={"align": {"beta": 0.1}}, tags={"dataset": "abc"}) as run:
        run.log_metrics({"accuracy": 0.25}, step=3)
        run.log_artifact(tmp_path / "note.txt", "notes")
        written = enter(artifacts, tmp_path, "vlm")
    assert written["alias"] == "champion"
    (note,) = [key for key in cluster.store.keys("mlflow/") if key.endswith("/artifacts/notes/note.txt")]
    assert cluster.store.read(note) == b"hello"
    # What the registry calls mlflow-artifacts:/PATH is s3://vlmflow/mlflow/PATH to KServe, as `deploy` says it.
    told = find(build("overlays/local"), "ConfigMap", "vlmflow")["data"]
    monkeypatch.setenv(storage.DESTINATION, told[storage.DESTINATION])
    key = storage.checkpoint_uri(written).removeprefix("s3://vlmflow/")
    assert f"{key}/config.json" in cluster.store.keys(key)


def test_a_store_that_refuses_writes(cluster: Cluster, artifacts: Path, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("hello")
    cluster.store.allow("s3:Get*", "s3:List*")
    try:
        with mlflow_run.run("align") as run:
            for work in (
                lambda: run.log_artifact(tmp_path / "note.txt"),
                lambda: enter(artifacts, tmp_path, "refused"),
            ):
                assert "its artifacts: " in refusal(cluster, work)
    finally:
        cluster.store.allow("s3:*")
    assert versions("refused") == [] and not (tmp_path / "version.json").exists()


def test_a_database_that_goes_in_the_middle_and_comes_back(
    cluster: Cluster, artifacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    set_alias = MlflowClient.set_registered_model_alias

    def after_it_has_gone(*arguments: Any) -> None:
        cluster.postgres.stop()
        set_alias(*arguments)

    try:
        with monkeypatch.context() as broken:
            broken.setattr(MlflowClient, "set_registered_model_alias", after_it_has_gone)
            assert "see to its database" in refusal(cluster, lambda: enter(artifacts, tmp_path, "gone"))
        assert not (tmp_path / "version.json").exists()
        worked = []

        def step() -> None:
            with mlflow_run.run("align"):
                worked.append(True)

        assert "see to its database" in refusal(cluster, step) and not worked  # before the work, not after it
    finally:
        cluster.postgres.start()
    # Out of reach, the version could not be taken back: no alias points to it, and the next try makes it whole.
    assert [version.aliases for version in versions("gone")] == [()]
    assert enter(artifacts, tmp_path, "gone")["version"] == "1"
    assert [version.aliases for version in versions("gone")] == [("champion",)]
    assert (download("models:/gone@champion") / "model" / "config.json").is_file()


def test_a_wrong_secret_of_the_store(cluster: Cluster, artifacts: Path, tmp_path: Path) -> None:
    cluster.server.stop()
    cluster.server.start(AWS_SECRET_ACCESS_KEY="wrong")
    assert "its artifacts: " in refusal(cluster, lambda: enter(artifacts, tmp_path, "wrong"))
    assert versions("wrong") == []
    with pytest.raises(ModelError, match="models:/vlm@champion: cannot be fetched"):
        download("models:/vlm@champion")


def test_a_server_that_comes_late_is_waited_for_and_remembers(
    cluster: Cluster, artifacts: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.server.stop()
    monkeypatch.setenv("VLMFLOW_MLFLOW_WAIT", "300")
    late = threading.Thread(target=cluster.server.start)
    late.start()
    try:
        with caplog.at_level("WARNING", logger="vlmflow.tracking.mlflow_run"):
            client = mlflow_run.client()
    finally:
        late.join()
    assert "waiting up to 300 s" in caplog.text
    (version,) = versions("vlm")
    assert version.aliases == ("champion",) and version.model_hash == Checkpoint(artifacts / "model").hash
    kept = client.get_run(version.tags["step_run"])
    assert (kept.info.status, kept.data.params) == ("FINISHED", {"align.beta": "0.1"})
    assert kept.data.metrics == {"accuracy": 0.25}
    folder = download("models:/vlm@champion")
    assert Checkpoint(folder / "model").hash == version.model_hash
    assert json.loads((folder / "scores/scores.json").read_text())["model"] == version.model_hash
