"""Kubeflow Pipelines' server: where it answers, who asks, and what its refusals mean."""

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
TOKEN_FILE = Path("/var/run/secrets/kubeflow/pipelines/token")  # where Kubeflow's notebooks have it


@dataclass(frozen=True)
class Server:
    """Where Kubeflow Pipelines answers, and who asks.

    host: its address.
    token: a bearer token; "" takes the service account's, in a pod that has one.
    namespace: the profile, in a Kubeflow of several users; "" in one without.
    """

    host: str
    token: str = ""
    namespace: str = ""

    @classmethod
    def at(cls, host: str = "", token: str = "", namespace: str = "") -> "Server":
        """The server that the command line or the environment names; in a pod of the cluster, the cluster's own.

        Raises:
            ServiceError: nothing names one.
        """
        host = host or os.environ.get(ENDPOINT) or (IN_CLUSTER if "KUBERNETES_SERVICE_HOST" in os.environ else "")
        if not host:
            raise ServiceError(
                f"no host: give --host http://…, or set {ENDPOINT}; only a pod of the cluster needs none"
            )
        host = host if host.startswith(("http://", "https://")) else f"https://{host}"
        return cls(host.rstrip("/"), token or os.environ.get(TOKEN, ""), namespace)

    def page(self, place: str) -> str:
        """The address of a page of the UI."""
        return f"{os.environ.get(UI, self.host)}/#/{place}"

    def client(self) -> Client:
        """A client of the server, which was asked first: the client's own way of asking takes half a minute to say no.

        Raises:
            ServiceError: nobody answers there, or not to us.
        """
        file = Path(os.environ.get("KF_PIPELINES_SA_TOKEN_PATH", TOKEN_FILE))
        own = file.exists() and not self.token
        credentials = ServiceAccountTokenVolumeCredentials(str(file)) if own else None  # read anew when it is renewed
        token = file.read_text().strip() if own else self.token
        try:
            answer = httpx.get(
                f"{self.host}/apis/v2beta1/healthz",
                headers={"Authorization": f"Bearer {token}"} if token else {},
                timeout=10,
            )
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._silent(error) from error
        if answer.is_redirect:
            raise self._refusal(401, f"it sends us to log in at {answer.headers.get('location', '?')[:100]}")
        if answer.is_error or "json" not in answer.headers.get("content-type", ""):
            raise self._refusal(answer.status_code, " ".join(answer.text.split())[:100])
        given: dict[str, Any] = {"namespace": self.namespace} if self.namespace else {}
        with self.answering():
            return Client(self.host, existing_token=self.token or None, credentials=credentials, **given)

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """Turn what the client raises into one line that says what to do, and keep to itself what it prints."""
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                yield
        except kfp_server_api.ApiException as error:
            raise self._refusal(error.status or 0, _said(error)) from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise self._silent(error) from error

    def _silent(self, error: Exception) -> ServiceError:
        reason = " ".join(str(getattr(error, "reason", error)).split())[:160]
        return ServiceError(f"{self.host}: Kubeflow Pipelines does not answer: {reason}; is --host right, is it up?")

    def _refusal(self, status: int, said: str) -> ServiceError:
        remedy = {
            401: f"it does not know us; give --token, or set {TOKEN}",
            403: f"it does not let us; is --namespace {self.namespace or '…'} ours, and the token for it?",
            404: "not there; Kubeflow's own address ends with /pipeline",
        }.get(status, "this is no answer of Kubeflow Pipelines; is --host right?" if status < 400 else "it refused")
        return ServiceError(f"{self.host}: {status}: {remedy}: {said}")


def _said(error: kfp_server_api.ApiException) -> str:
    """The server's own sentence, out of the JSON that it is wrapped in."""
    with contextlib.suppress(ValueError, TypeError, KeyError):
        return str(json.loads(error.body or "")["message"])[:300]
    return " ".join(str(error.body or error.reason).split())[:300]
