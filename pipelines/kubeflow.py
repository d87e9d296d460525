"""Connection to a Kubeflow Pipelines server: address, credentials, and its errors in one line."""

import contextlib
import io
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import kfp_server_api
import urllib3
from kfp.client import Client, ServiceAccountTokenVolumeCredentials

from vlmflow.errors import ServiceError

ENDPOINT, UI, TOKEN = "KF_PIPELINES_ENDPOINT", "KF_PIPELINES_UI_ENDPOINT", "VLMFLOW_KFP_TOKEN"
IN_CLUSTER = "http://ml-pipeline.kubeflow.svc.cluster.local:8888"
TOKEN_FILE = Path("/var/run/secrets/kubeflow/pipelines/token")  # mounted in Kubeflow notebooks


@dataclass(frozen=True)
class Server:
    """Address and credentials of a Kubeflow Pipelines server.

    host: the server's URL.
    token: bearer token; "" uses the service account's token, in a pod that has one.
    namespace: the user's profile in a multi-user Kubeflow; "" elsewhere.
    """

    host: str
    token: str = ""
    namespace: str = ""

    @classmethod
    def from_env(cls, host: str = "", token: str = "", namespace: str = "") -> "Server":
        """Return the server given by the command line or the environment; in a pod, the cluster's own.

        Raises:
            ServiceError: no server is configured.
        """
        host = host or os.environ.get(ENDPOINT) or (IN_CLUSTER if "KUBERNETES_SERVICE_HOST" in os.environ else "")
        if not host:
            raise ServiceError(
                f"no Kubeflow Pipelines host; pass --host http://… or set {ENDPOINT} (optional only inside the cluster)"
            )
        host = host if host.startswith(("http://", "https://")) else f"https://{host}"
        return cls(host.rstrip("/"), token or os.environ.get(TOKEN, ""), namespace)

    def url(self, page: str) -> str:
        """Return the address of a page of the UI."""
        return f"{os.environ.get(UI, self.host)}/#/{page}"

    def client(self) -> Client:
        """Return a KFP client after a health check: the client's own check takes half a minute to fail.

        Raises:
            ServiceError: the server does not answer, or authentication fails.
        """
        file = Path(os.environ.get("KF_PIPELINES_SA_TOKEN_PATH", TOKEN_FILE))
        own = file.exists() and not self.token
        credentials = ServiceAccountTokenVolumeCredentials(str(file)) if own else None  # re-reads a renewed token
        token = file.read_text().strip() if own else self.token
        try:
            answer = httpx.get(
                f"{self.host}/apis/v2beta1/healthz",
                headers={"Authorization": f"Bearer {token}"} if token else {},
                timeout=10,
            )
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._unreachable(error) from error
        if answer.is_redirect:
            raise self._http_error(401, f"redirected to the login page {answer.headers.get('location', '?')[:100]}")
        if answer.is_error or "json" not in answer.headers.get("content-type", ""):
            raise self._http_error(answer.status_code, " ".join(answer.text.split())[:100])
        given: dict[str, Any] = {"namespace": self.namespace} if self.namespace else {}
        with self.translate_errors():
            return Client(self.host, existing_token=self.token or None, credentials=credentials, **given)

    @contextlib.contextmanager
    def translate_errors(self) -> Iterator[None]:
        """Turn the client's exceptions into a one-line ServiceError with a remedy; suppress what the client prints."""
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                yield
        except kfp_server_api.ApiException as error:
            raise self._http_error(error.status or 0, _server_message(error)) from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> ServiceError:
        reason = " ".join(str(getattr(error, "reason", error)).split())[:160]
        return ServiceError(
            f"{self.host}: Kubeflow Pipelines does not answer: {reason}; check --host and that the server is running"
        )

    def _http_error(self, status: int, message: str) -> ServiceError:
        remedy = {
            401: f"authentication failed; pass --token or set {TOKEN}",
            403: f"permission denied; check --namespace {self.namespace or '…'} and that the token is valid for it",
            404: "not found; the address of Kubeflow's central dashboard needs the path /pipeline",
        }.get(status, "not a Kubeflow Pipelines server; check --host" if status < 400 else "request refused")
        return ServiceError(f"{self.host}: {status}: {remedy}: {message}")


def _server_message(error: kfp_server_api.ApiException) -> str:
    """Return the message inside the JSON body of a KFP error."""
    with contextlib.suppress(ValueError, TypeError, KeyError):
        return str(json.loads(error.body or "")["message"])[:300]
    return " ".join(str(error.body or error.reason).split())[:300]
