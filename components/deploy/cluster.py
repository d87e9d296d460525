"""The cluster's API as a deployment needs it; whatever it refuses is one line that says what to do."""

import json
import os
from typing import Any, cast

from vlmflow.errors import ServiceError

MANAGER = "vlmflow"  # who owns the fields that we apply
_RESOURCES = {  # where the kinds are
    "InferenceService": "/apis/serving.kserve.io/v1beta1/namespaces/{namespace}/inferenceservices",
    "ServingRuntime": "/apis/serving.kserve.io/v1alpha1/namespaces/{namespace}/servingruntimes",
    "HTTPRoute": "/apis/gateway.networking.k8s.io/v1/namespaces/{namespace}/httproutes",
    "ControllerRevision": "/apis/apps/v1/namespaces/{namespace}/controllerrevisions",
    "Pod": "/api/v1/namespaces/{namespace}/pods",
    "Event": "/api/v1/namespaces/{namespace}/events",
}
_REQUEST_SECONDS = 30.0


class Refused(ServiceError):
    """The API server says no.

    status: of the answer.
    """

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


class Cluster:
    """A namespace of the cluster that KUBECONFIG names, or that this pod runs in.

    Raises:
        ServiceError: none is named, or its configuration is damaged.
    """

    def __init__(self, namespace: str):
        from kubernetes import client, config

        self.namespace, configuration = namespace, client.Configuration()
        place = os.environ.get("KUBECONFIG")
        try:
            if place or "KUBERNETES_SERVICE_HOST" not in os.environ:
                config.load_kube_config(place, client_configuration=configuration)
            else:
                config.load_incluster_config(client_configuration=configuration)
        except (config.ConfigException, OSError, ValueError) as error:
            raise ServiceError(
                f"deploy.target is cluster, and no cluster is named: {' '.join(str(error).split())[:200]}; set "
                "KUBECONFIG, run in a pod, or set deploy.target to local or manifest"
            ) from error
        self.host, self.api = configuration.host, client.ApiClient(configuration)

    def find(self, kind: str, name: str) -> dict[str, Any] | None:
        """The object, or None where there is none of that name."""
        try:
            return self._call("GET", kind, name)
        except Refused as refusal:
            if refusal.status != 404:
                raise
            return None

    def items(self, kind: str, selector: str = "") -> list[dict[str, Any]]:
        """The objects of a kind, those that a selector of labels chooses."""
        return self._call("GET", kind, query={"labelSelector": selector} if selector else {})["items"]

    def apply(self, manifest: dict[str, Any], dry_run: bool = False) -> dict[str, Any]:
        """Server-side apply: make or change the object, and nothing where it is as it should be.

        Args:
            dry_run: change nothing at all, and return what it would be.
        """
        query = {"fieldManager": MANAGER, "force": "true", **({"dryRun": "All"} if dry_run else {})}
        return self._call("PATCH", manifest["kind"], manifest["metadata"]["name"], query=query, body=manifest)

    def delete(self, kind: str, name: str) -> None:
        """Delete the object, if it is there."""
        try:
            self._call("DELETE", kind, name, query={"propagationPolicy": "Foreground"})
        except Refused as refusal:
            if refusal.status != 404:
                raise

    def _call(
        self, method: str, kind: str, name: str = "", query: dict[str, str] | None = None, body: Any = None
    ) -> dict[str, Any]:
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        what = f"{kind} {name}".strip()
        header = {"Accept": "application/json"}
        if body is not None:
            header["Content-Type"] = "application/apply-patch+yaml"
        path = _RESOURCES[kind].format(namespace=self.namespace) + (f"/{name}" if name else "")
        try:
            answer = self.api.call_api(
                path,
                method,
                query_params=list((query or {}).items()),
                header_params=header,
                body=body,
                response_type="object",
                auth_settings=["BearerToken"],
                _return_http_data_only=True,
                _request_timeout=_REQUEST_SECONDS,
            )
        except ApiException as error:
            raise self._refusal(what, kind, error) from error
        except (HTTPError, OSError) as error:
            reason = " ".join(str(getattr(error, "reason", None) or error).split())[:200]
            raise ServiceError(
                f"{self.host}: the cluster does not answer: {reason}; is it up, and is KUBECONFIG right?"
            ) from error
        return cast(dict[str, Any], answer)

    def _refusal(self, what: str, kind: str, error: Any) -> Refused:
        try:
            said = json.loads(error.body)
            message = str(said["message"])
        except (TypeError, ValueError, KeyError):
            said, message = {}, " ".join(str(error.body or error.reason).split())[:200]
        about = (said.get("details") or {}).get("kind", "")
        remedy = {
            401: "the cluster does not know us; log in again, or is KUBECONFIG right?",
            403: "give this account the verb (infra/namespace/pipeline.yaml has what a step needs)",
            409: "somebody changes it at the same time; run the step again",
        }.get(error.status, "")
        if error.status == 404 and not said:  # no such path: the kind is not known
            group = _RESOURCES[kind].split("/")[2]
            remedy = f"the cluster has no {kind} ({group}); install it, or set deploy.target to manifest"
        elif error.status == 404 and about == "namespaces":
            remedy = f"make the namespace, or set deploy.namespace (now {self.namespace})"
        text = f"{what} in {self.namespace}: {error.status}: {message}" + (f"; {remedy}" if remedy else "")
        return Refused(text, 0 if error.status == 404 and (not said or about == "namespaces") else error.status)
