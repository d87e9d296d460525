"""A client of the Kubernetes API for the kinds of objects that the steps use; an error is one line with a remedy."""

import json
import os
from collections.abc import Iterator
from typing import Any, cast

from vlmflow.errors import ServiceError

FIELD_MANAGER = "vlmflow"  # owner of the fields that we apply
_PATHS = {
    "InferenceService": "/apis/serving.kserve.io/v1beta1/namespaces/{namespace}/inferenceservices",
    "ServingRuntime": "/apis/serving.kserve.io/v1alpha1/namespaces/{namespace}/servingruntimes",
    "HTTPRoute": "/apis/gateway.networking.k8s.io/v1/namespaces/{namespace}/httproutes",
    "ControllerRevision": "/apis/apps/v1/namespaces/{namespace}/controllerrevisions",
    "TrainJob": "/apis/trainer.kubeflow.org/v1alpha1/namespaces/{namespace}/trainjobs",
    "Workflow": "/apis/argoproj.io/v1alpha1/namespaces/{namespace}/workflows",
    "RayJob": "/apis/ray.io/v1/namespaces/{namespace}/rayjobs",
    "Pod": "/api/v1/namespaces/{namespace}/pods",
    "Event": "/api/v1/namespaces/{namespace}/events",
}
_REQUEST_SECONDS = 30.0


class ClusterUnreachable(ServiceError):
    """The API server does not answer."""


class KubeApiError(ServiceError):
    """The API server refuses a request.

    status: HTTP status of the response; 0 if the kind or the namespace does not exist.
    """

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


class KubeClient:
    """One namespace of the cluster that KUBECONFIG selects, or in a pod of its own cluster.

    Args:
        namespace: the namespace; "" is that of the kubeconfig's context or of the pod.
        needed_by: what needs the cluster, for the error message.
        namespace_setting: the setting that selects the namespace, for error messages.
        alternative: what else the user can do without a cluster, for error messages.

    Raises:
        ServiceError: no cluster is configured, or the configuration is invalid.
    """

    def __init__(self, namespace: str, *, needed_by: str, namespace_setting: str, alternative: str = ""):
        from kubernetes import client, config

        configuration = client.Configuration()
        self._namespace_setting = namespace_setting
        self._alternative = f", or {alternative}" if alternative else ""
        kubeconfig = os.environ.get("KUBECONFIG")
        try:
            if kubeconfig or "KUBERNETES_SERVICE_HOST" not in os.environ:
                config.load_kube_config(kubeconfig, client_configuration=configuration)
            else:
                config.load_incluster_config(client_configuration=configuration)
        except (config.ConfigException, OSError, ValueError) as error:
            raise ServiceError(
                f"{needed_by}: needs a cluster, and none is configured: {' '.join(str(error).split())[:200]}; "
                f"set KUBECONFIG, or run in a pod{self._alternative}"
            ) from error
        self.host, self.api = configuration.host, client.ApiClient(configuration)
        self.namespace = namespace or _default_namespace()

    def find(self, kind: str, name: str) -> dict[str, Any] | None:
        """Return the object, or None if it does not exist."""
        try:
            return self._call("GET", kind, name)
        except KubeApiError as error:
            if error.status != 404:
                raise
            return None

    def items(self, kind: str, selector: str = "") -> list[dict[str, Any]]:
        """Return the objects of a kind that match a label selector."""
        return self._call("GET", kind, query={"labelSelector": selector} if selector else {})["items"]

    def create(self, manifest: dict[str, Any]) -> dict[str, Any]:
        """Create the object; KubeApiError if it exists."""
        return self._call("POST", manifest["kind"], body=manifest, content_type="application/json")

    def apply(self, manifest: dict[str, Any], dry_run: bool = False) -> dict[str, Any]:
        """Create or change the object by server-side apply, which changes nothing if the object is up to date.

        Args:
            manifest: the object.
            dry_run: change nothing, and return the result that an apply would have.
        """
        query = {"fieldManager": FIELD_MANAGER, "force": "true", **({"dryRun": "All"} if dry_run else {})}
        name = manifest["metadata"]["name"]
        return self._call("PATCH", manifest["kind"], name, query, manifest, "application/apply-patch+yaml")

    def delete(self, kind: str, name: str) -> None:
        """Delete the object, and before it the objects that it owns; nothing if it does not exist."""
        try:
            self._call("DELETE", kind, name, query={"propagationPolicy": "Foreground"})
        except KubeApiError as error:
            if error.status != 404:
                raise

    def follow_log(self, pod: str) -> Iterator[str]:
        """Yield the lines of a pod's log until the pod ends."""
        from kubernetes import client, watch

        read = client.CoreV1Api(self.api).read_namespaced_pod_log
        for line in watch.Watch().stream(read, name=pod, namespace=self.namespace, follow=True):
            yield str(line)

    def _call(
        self,
        method: str,
        kind: str,
        name: str = "",
        query: dict[str, str] | None = None,
        body: Any = None,
        content_type: str = "",
    ) -> dict[str, Any]:
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        header = {"Accept": "application/json", **({"Content-Type": content_type} if content_type else {})}
        try:
            response = self.api.call_api(
                _PATHS[kind].format(namespace=self.namespace) + (f"/{name}" if name else ""),
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
            raise self._api_error(f"{kind} {name}".strip(), kind, error) from error
        except (HTTPError, OSError) as error:
            reason = " ".join(str(getattr(error, "reason", None) or error).split())[:200]
            raise ClusterUnreachable(
                f"{self.host}: the cluster does not answer: {reason}; check that it is running, and check KUBECONFIG"
            ) from error
        return cast(dict[str, Any], response)

    def _api_error(self, subject: str, kind: str, error: Any) -> KubeApiError:
        try:
            status = json.loads(error.body)
            message = str(status["message"])
        except (TypeError, ValueError, KeyError):
            status, message = {}, " ".join(str(error.body or error.reason).split())[:200]
        is_namespace = (status.get("details") or {}).get("kind", "") == "namespaces"
        remedy = {
            401: "authentication failed; log in again, or check KUBECONFIG",
            403: "grant this account the verb (infra/namespace/pipeline.yaml has all that a step needs)",
            409: "the object is being changed by another client; run the step again",
        }.get(error.status, "")
        if error.status == 404 and not status:  # the path does not exist, because the kind is not installed
            group = _PATHS[kind].split("/")[2]
            remedy = f"the cluster has no {kind} ({group}); install it{self._alternative}"
        elif error.status == 404 and is_namespace:
            remedy = f"create the namespace, or set {self._namespace_setting} (now {self.namespace})"
        text = f"{subject} in {self.namespace}: {error.status}: {message}" + (f"; {remedy}" if remedy else "")
        return KubeApiError(text, 0 if error.status == 404 and (not status or is_namespace) else error.status)


def _default_namespace() -> str:
    from kubeflow.common.utils import get_default_target_namespace

    return get_default_target_namespace()
