"""PostgreSQL, an S3 server and MLflow's server as processes on this machine, set up as in the cluster."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.infra.conftest import INFRA, Manifest, build, find

START_SECONDS = 300.0  # generous, because the machine may be busy


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until(ready: Callable[[], Any], process: subprocess.Popen, log: Path) -> None:
    """Wait until `ready()` raises no error; fail when the process exits."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            ready()
            return
        except Exception as error:
            assert process.poll() is None and time.monotonic() < deadline, f"{error}\n{log.read_text()[-2000:]}"
            time.sleep(0.1)


class Service:
    """A process on a free port that can be stopped and started again."""

    process: subprocess.Popen | None = None
    stop_signal = signal.SIGTERM

    def __init__(self, folder: Path):
        self.port, self.folder, self.log = free_port(), folder, folder / "log"

    def launch(self, command: list[str], ready: Callable[[], Any], **options: Any) -> None:
        with self.log.open("a") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, **options)
        wait_until(ready, self.process, self.log)

    def stop(self) -> None:
        """Stop the process as the kubelet does: send the stop signal, and kill it after 20 s."""
        if self.process is not None:
            os.killpg(self.process.pid, self.stop_signal)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
            self.process = None


class Postgres(Service):
    """A new PostgreSQL with the user and the database of the manifest, and password authentication."""

    stop_signal = signal.SIGINT  # the image's stop signal: SIGTERM waits for all clients to disconnect

    def __init__(self, password: str):
        if not shutil.which("initdb"):
            pytest.skip("the PostgreSQL server is not installed")
        super().__init__(
            Path(tempfile.mkdtemp(prefix="vlmflow-postgres-"))
        )  # the user postgres cannot read root's folders
        self.password = password
        # PostgreSQL does not run as root.
        self.owner: dict[str, Any] = {"user": "postgres", "group": "postgres"} if os.getuid() == 0 else {}
        if self.owner:
            shutil.chown(self.folder, "postgres", "postgres")
        pod = find(build("overlays/local"), "StatefulSet", "postgres")["spec"]["template"]["spec"]
        environment = {entry["name"]: entry.get("value") for entry in pod["containers"][0]["env"]}
        self.user, self.database = environment["POSTGRES_USER"], environment["POSTGRES_DB"]
        password_file = self.folder / "password"
        password_file.write_text(password)
        command = ["initdb", "-D", str(self.folder / "data"), "-U", self.user, "--auth=scram-sha-256"]
        command.append(f"--pwfile={password_file}")
        done = subprocess.run(command, capture_output=True, text=True, cwd=self.folder, **self.owner)
        assert done.returncode == 0, done.stderr

    def start(self) -> None:
        command = ["postgres", "-D", str(self.folder / "data"), "-p", str(self.port), "-k", str(self.folder)]
        self.launch(
            [*command, "-h", "127.0.0.1", "-c", "fsync=off"], self.create_database, cwd=self.folder, **self.owner
        )

    def create_database(self) -> None:
        import psycopg2

        connection = psycopg2.connect(
            host="127.0.0.1", port=self.port, user=self.user, password=self.password, dbname="postgres"
        )
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("select 1 from pg_database where datname = %s", [self.database])
            if cursor.fetchone() is None:
                cursor.execute(f'create database "{self.database}"')
        connection.close()


class S3Server(Service):
    """An S3 server that checks every signature, with one user; `allow` sets the user's permissions."""

    def __init__(self, folder: Path, bucket: str):
        super().__init__(folder)
        self.bucket = bucket
        self.accesskey = self.secretkey = ""

    def start(self) -> None:
        import httpx

        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        # The four calls below need no authentication; all later ones do.
        environment = {**os.environ, "INITIAL_NO_AUTH_ACTION_COUNT": "4"}
        self.launch(command, lambda: httpx.get(f"{self.url}/moto-api/").raise_for_status(), env=environment)
        with self.client("iam") as iam:
            iam.create_user(UserName="mlflow")
            key = iam.create_access_key(UserName="mlflow")["AccessKey"]
        self.allow("s3:*")
        self.accesskey, self.secretkey = key["AccessKeyId"], key["SecretAccessKey"]
        with self.client("s3") as s3:
            s3.create_bucket(Bucket=self.bucket)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @contextmanager
    def client(self, service: str) -> Iterator[Any]:
        import boto3

        client = boto3.client(
            service,
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id=self.accesskey or "nobody",
            aws_secret_access_key=self.secretkey or "nothing",
        )
        yield client
        client.close()

    def allow(self, *actions: str) -> None:
        statement = {"Effect": "Allow", "Action": [*actions, "iam:*"], "Resource": "*"}
        policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
        with self.client("iam") as iam:
            iam.put_user_policy(UserName="mlflow", PolicyName="own", PolicyDocument=policy)

    def keys(self, prefix: str = "") -> list[str]:
        with self.client("s3") as s3:
            return [entry["Key"] for entry in s3.list_objects_v2(Bucket=self.bucket, Prefix=prefix).get("Contents", [])]

    def read(self, key: str) -> bytes:
        with self.client("s3") as s3:
            return s3.get_object(Bucket=self.bucket, Key=key)["Body"].read()


class MlflowServer(Service):
    """MLflow's pod with the commands and environment of its Deployment, except for hosts and ports.

    Args:
        secrets: Secret → its key → value.
        manifests: of the Deployment and its ConfigMaps.
    """

    def __init__(self, folder: Path, secrets: dict[str, dict[str, str]], endpoint: str, manifests: list[Manifest]):
        super().__init__(folder)
        pod = find(manifests, "Deployment", "mlflow")["spec"]["template"]["spec"]
        (container,), (self.migration,) = pod["containers"], pod["initContainers"]
        self.environment = {"PATH": os.environ["PATH"], "HOME": str(folder)}
        for source in container["envFrom"]:
            self.environment |= find(manifests, "ConfigMap", source["configMapRef"]["name"])["data"]
        for entry in container["env"] + self.migration["env"]:
            key = entry.get("valueFrom", {}).get("secretKeyRef")
            self.environment[entry["name"]] = secrets[key["name"]][key["key"]] if key else entry["value"]
        self.environment["MLFLOW_S3_ENDPOINT_URL"] = endpoint
        if "MLFLOW_AUTH_CONFIG_PATH" in self.environment:
            self.environment["MLFLOW_AUTH_CONFIG_PATH"] = str(folder / "basic_auth.ini")
        replacements = {
            "python": sys.executable,
            "--host=0.0.0.0": "--host=127.0.0.1",
            "--port=5000": f"--port={self.port}",
        }
        self.command = [replacements.pop(word, word) for word in container["command"] + container["args"]]
        assert not replacements  # each was found

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def migrate(self, replicas: int) -> None:
        """Run the init container of several replicas at the same time."""
        command = [sys.executable, str(INFRA / "mlflow" / Path(self.migration["command"][1]).name)]
        options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        pods = [subprocess.Popen(command, env=self.environment, cwd=self.folder, **options) for _ in range(replicas)]
        outputs = [pod.communicate()[0] for pod in pods]
        assert [pod.returncode for pod in pods] == [0] * replicas, outputs

    def start(self, **environment: str) -> None:
        """Start the server, without its init container."""
        import httpx

        merged = {**self.environment, **environment}
        self.launch(
            self.command, lambda: httpx.get(f"{self.url}/health").raise_for_status(), env=merged, cwd=self.folder
        )


def database_uri(password: str, port: int) -> str:
    """Return the Secret's `uri` as cluster.sh writes it, for a port on this machine."""
    (template,) = re.findall(r'uri="(.*?)"', (INFRA / "cluster.sh").read_text())
    return template.replace("$password", password).replace(
        "postgres.vlmflow.svc.cluster.local:5432", f"127.0.0.1:{port}"
    )
