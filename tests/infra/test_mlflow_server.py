"""MLflow's server, set up as in its manifest, with a real PostgreSQL and an S3 server; and failures of each."""

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
from tests.infra.conftest import build, build_production_with_components, find
from tests.infra.fake_services import MlflowServer, Postgres, S3Server, database_uri
from tests.register import test_registration
from vlmflow.artifacts.checkpoint import Checkpoint
from vlmflow.errors import ModelError, ServiceError
from vlmflow.tracking import mlflow_run, mlflow_store
from vlmflow.tracking.registry import RegistryConfig, download, list_versions

pytestmark = pytest.mark.soak
artifacts = test_registration.artifacts  # a fixture: the outputs of the gate


@dataclass
class Services:
    """The running services."""

    postgres: Postgres
    store: S3Server
    server: MlflowServer


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    postgres = Postgres(password="0123abcd")
    store = S3Server(tmp_path_factory.mktemp("store"), bucket="vlmflow")
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
            server = MlflowServer(tmp_path_factory.mktemp("server"), secrets, store.url, build("overlays/local"))
            started.append(server)
            server.migrate(replicas=2)
            server.start()
            patch.setenv("MLFLOW_TRACKING_URI", server.url)
            patch.setenv("VLMFLOW_MLFLOW_WAIT", "1")
            patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
            yield Services(postgres, store, server)
        finally:
            for service in reversed(started):
                service.stop()
            shutil.rmtree(postgres.folder)


def register_model(artifacts: Path, out: Path, name: str) -> dict[str, Any]:
    model, scores, verdict = (artifacts / part for part in ("model", "scores", "verdict"))
    return register(model, scores, verdict, out, "seed: 0\n", RegistryConfig(name=name), revision="abc")


def service_error(services: Services, work: Callable[[], object]) -> str:
    """Return the one-line ServiceError with which `work` fails."""
    with pytest.raises(ServiceError) as caught:
        work()
    message = str(caught.value)
    assert "\n" not in message and message.startswith(f"MLflow at {services.server.url}: ")
    return message


# The tests depend on each other in this order: the server starts slowly, and the last test checks what it has stored.


def test_artifacts_and_models_are_stored_in_the_bucket(
    services: Services, artifacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "note.txt").write_text("hello")
    with mlflow_run.start_run("align", params={"align": {"beta": 0.1}}, tags={"dataset": "abc"}) as run:
        run.log_metrics({"accuracy": 0.25}, step=3)
        run.log_artifact(tmp_path / "note.txt", "notes")
        written = register_model(artifacts, tmp_path, "vlm")
    assert written["alias"] == "champion"
    (note,) = [key for key in services.store.keys("mlflow/") if key.endswith("/artifacts/notes/note.txt")]
    assert services.store.read(note) == b"hello"
    # `deploy` maps the registry's mlflow-artifacts:/PATH to s3://vlmflow/mlflow/PATH for KServe.
    settings = find(build("overlays/local"), "ConfigMap", "vlmflow")["data"]
    monkeypatch.setenv(storage.DESTINATION, settings[storage.DESTINATION])
    key = storage.checkpoint_uri(written).removeprefix("s3://vlmflow/")
    assert f"{key}/config.json" in services.store.keys(key)


def test_a_store_without_write_permission(services: Services, artifacts: Path, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("hello")
    services.store.allow("s3:Get*", "s3:List*")
    try:
        with mlflow_run.start_run("align") as run:
            for work in (
                lambda: run.log_artifact(tmp_path / "note.txt"),
                lambda: register_model(artifacts, tmp_path, "denied"),
            ):
                assert "artifacts: " in service_error(services, work)
    finally:
        services.store.allow("s3:*")
    assert list_versions("denied") == [] and not (tmp_path / "version.json").exists()


def test_a_database_outage_during_registration(
    services: Services, artifacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    set_alias = MlflowClient.set_registered_model_alias

    def stop_database_and_set_alias(*arguments: Any) -> None:
        services.postgres.stop()
        set_alias(*arguments)

    try:
        with monkeypatch.context() as patch:
            patch.setattr(MlflowClient, "set_registered_model_alias", stop_database_and_set_alias)
            assert "check its database" in service_error(
                services, lambda: register_model(artifacts, tmp_path, "outage")
            )
        assert not (tmp_path / "version.json").exists()
        worked = []

        def step() -> None:
            with mlflow_run.start_run("align"):
                worked.append(True)

        assert "check its database" in service_error(services, step) and not worked  # it fails before the work starts
    finally:
        services.postgres.start()
    # The rollback of the version could not reach the server: no alias points to it, and the next attempt completes it.
    assert [version.aliases for version in list_versions("outage")] == [()]
    assert register_model(artifacts, tmp_path, "outage")["version"] == "1"
    assert [version.aliases for version in list_versions("outage")] == [("champion",)]
    assert (download("models:/outage@champion") / "model" / "config.json").is_file()


def test_a_server_with_a_wrong_secret_of_the_store(services: Services, artifacts: Path, tmp_path: Path) -> None:
    services.server.stop()
    services.server.start(AWS_SECRET_ACCESS_KEY="wrong")
    assert "artifacts: " in service_error(services, lambda: register_model(artifacts, tmp_path, "wrong"))
    assert list_versions("wrong") == []
    with pytest.raises(ModelError, match="models:/vlm@champion: cannot download"):
        download("models:/vlm@champion")


def test_a_late_server_is_waited_for_and_has_kept_its_data(
    services: Services, artifacts: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    services.server.stop()
    monkeypatch.setenv("VLMFLOW_MLFLOW_WAIT", "300")
    starting = threading.Thread(target=services.server.start)
    starting.start()
    try:
        with caplog.at_level("WARNING", logger="vlmflow.tracking.mlflow_store"):
            client = mlflow_store.client()
    finally:
        starting.join()
    assert "waiting up to 300 s" in caplog.text
    (version,) = list_versions("vlm")
    assert version.aliases == ("champion",) and version.model_hash == Checkpoint(artifacts / "model").hash
    run = client.get_run(version.tags["step_run"])
    assert (run.info.status, run.data.params) == ("FINISHED", {"align.beta": "0.1"})
    assert run.data.metrics == {"accuracy": 0.25}
    folder = download("models:/vlm@champion")
    assert Checkpoint(folder / "model").hash == version.model_hash
    assert json.loads((folder / "scores/scores.json").read_text())["model"] == version.model_hash


def test_the_login_of_the_component_basic_auth(tmp_path: Path) -> None:
    """Also with `%` in the database's password, which the configuration file of the login escapes."""
    import httpx

    postgres = Postgres(password="0123%abcd")
    started: list[Any] = [postgres]
    try:
        postgres.start()
        secrets = {
            "mlflow-database": {"uri": database_uri("0123%25abcd", postgres.port)},
            "mlflow-s3": {"accesskey": "key", "secretkey": "secret"},
            "mlflow-auth": {"username": "root", "password": "correct horse", "secretkey": "random"},
        }
        server = MlflowServer(tmp_path, secrets, "http://127.0.0.1:9", build_production_with_components())
        started.append(server)
        server.migrate(replicas=2)
        server.start()
        url = f"{server.url}/api/2.0/mlflow/experiments/get?experiment_id=0"
        answers = [
            httpx.get(url, auth=login).status_code for login in (None, ("root", "wrong"), ("root", "correct horse"))
        ]
        assert answers == [401, 401, 200]
    finally:
        for service in reversed(started):
            service.stop()
        shutil.rmtree(postgres.folder)
