"""Roll a version out to a cluster: apply, wait, test and promote it; on a failure restore the previous deployment.

The previous deployment is saved in a ControllerRevision until the new version has passed its test. So a step that is
killed in between loses nothing: the next run continues from there. An annotation would not work: KServe copies the
annotations of an InferenceService to its pods and restarts them for each change.
"""

import copy
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import httpx

from components.deploy.config import DeployConfig
from components.deploy.readiness import address, deployment_digest, last_failure, latest_revision, pending_conditions
from components.deploy.runtimes import OPENAI_PATHS
from vlmflow.errors import ServiceError
from vlmflow.runtime.kube_client import KubeApiError, KubeClient

logger = logging.getLogger(__name__)

RUN = "vlmflow.dev/kfp-run"
_KUBECTL = "kubectl.kubernetes.io/last-applied-configuration"
_POLL_SECONDS = 1.0
_ROUTE_SECONDS = 30.0  # after a revision is ready, a gateway may take this long to route to it

Manifest = dict[str, Any]
SmokeTest = Callable[[str, str], list[dict[str, Any]]]  # URL, header Host → exchanges


@dataclass
class Rollout:
    """The rollout of one InferenceService to a new spec.

    Args:
        service: the manifest of the InferenceService.
        runtime: the manifest of the ServingRuntime; None if the cluster already has it.
        smoke_test: tests the endpoint at a URL.
        record: receives what the transcript needs: url, host, revision, changed, rolled_back.
    """

    cluster: KubeClient
    service: Manifest
    runtime: Manifest | None
    config: DeployConfig
    smoke_test: SmokeTest
    record: dict[str, Any] = field(default_factory=dict)
    changed: bool = False

    def run(self) -> list[dict[str, Any]]:
        """Roll the version out. Returns the exchanges of the last smoke test.

        Raises:
            ServiceError: the cluster rejects a manifest, the service is not ready in time, or it fails the smoke test;
                the message includes what was rolled back.
        """
        live = self.cluster.find("InferenceService", self.name)
        snapshot = self.cluster.find("ControllerRevision", self.snapshot_name)  # left by a step that was killed
        if snapshot is not None and live is None:
            self.cluster.delete("ControllerRevision", self.snapshot_name)
            snapshot = None
        previous = snapshot["data"]["before"] if snapshot else _previous(live)
        phases = self._phases(previous)
        is_new_runtime = self.runtime is not None and self.cluster.find("ServingRuntime", _name(self.runtime)) is None
        self.changed = snapshot is not None
        try:
            if self.runtime is not None:
                self.cluster.apply(self.runtime)
            exchanges = [self._apply_and_test(manifest, previous) for manifest in phases][-1]
        except Exception as error:
            outcome = self._rollback(previous, is_new_runtime)
            if isinstance(error, ServiceError):
                raise ServiceError(f"{error}; {outcome}") from error
            raise
        self.cluster.delete("ControllerRevision", self.snapshot_name)
        self.record["changed"] = self.changed
        logger.info("%s: %s", self.name, "deployed" if self.changed else "already deployed; the smoke test passed")
        return exchanges

    @property
    def name(self) -> str:
        """The name of the InferenceService."""
        return _name(self.service)

    @property
    def snapshot_name(self) -> str:
        """The name of the ControllerRevision that holds the previous deployment."""
        return f"{self.name}-before"

    def _phases(self, previous: Manifest | None) -> list[Manifest]:
        """Return the manifests to apply in turn: a canary if there is a previous deployment, then the full rollout."""
        if not self.config.canary or previous is None or _is_deployed(previous, self.service):
            return [self.service]
        canary = copy.deepcopy(self.service)
        if self.config.mode == "Knative":
            canary["spec"]["predictor"]["canaryTrafficPercent"] = self.config.canary
        else:
            self._check_routes()
            canary = _as_canary(previous, self.service, self.config.canary)
        return [canary, self.service] if self.config.promote else [canary]

    def _check_routes(self) -> None:
        """Raises ServiceError without an HTTPRoute: in Standard mode nothing else splits requests for a canary."""
        route = f"{self.name}-predictor"
        try:
            http_route = self.cluster.find("HTTPRoute", route)
        except KubeApiError as error:
            if error.status:  # 0: the cluster has no such kind
                raise
            http_route = None
        if http_route is None:
            raise ServiceError(
                f"deploy.canary: there is no HTTPRoute {route} in {self.cluster.namespace} to split the requests; "
                "enable the Gateway API in KServe (enableGatewayApi), set deploy.mode: Knative, or set deploy.canary: 0"
            )

    def _apply_and_test(self, manifest: Manifest, previous: Manifest | None) -> list[dict[str, Any]]:
        """Apply the manifest of a phase, wait until it is ready, and test it."""
        live = self.cluster.find("InferenceService", self.name)
        if live is not None and _same_digest(live["spec"], manifest["spec"]):
            manifest = _same_run(manifest, live)
        if live is None or not self._is_noop(manifest, live):
            self._save_previous(previous)
            self.changed = True
        self.cluster.apply(manifest)
        logger.info("%s: %s", self.name, "applied" if self.changed else "up to date")
        replaced = self.changed and previous is not None and not _same_digest(previous["spec"], manifest["spec"])
        ready = self._wait_until_ready(manifest, old=previous["revision"] if previous and replaced else "")
        url, host = self._endpoint_url(manifest, ready)
        self.record |= {"url": url, **({"host": host} if host else {}), "revision": latest_revision(ready)}
        self._wait_for_route(url, host)
        return self.smoke_test(url, host)

    def _is_noop(self, manifest: Manifest, live: Manifest) -> bool:
        """Whether applying `manifest` would change nothing; by a dry run, because the cluster fills in defaults."""
        planned = self.cluster.apply(manifest, dry_run=True)
        return planned["metadata"]["generation"] == live["metadata"]["generation"]

    def _save_previous(self, previous: Manifest | None) -> None:
        """Save the previous deployment until the new version has passed its test."""
        if not self.changed:
            metadata = {"name": self.snapshot_name, "namespace": self.cluster.namespace}
            snapshot = {"apiVersion": "apps/v1", "kind": "ControllerRevision", "metadata": metadata, "revision": 1}
            self.cluster.apply({**snapshot, "data": {"before": previous}})

    def _rollback(self, previous: Manifest | None, is_new_runtime: bool) -> str:
        """Restore the previous deployment. Returns the outcome for the error message; never raises ServiceError."""
        if not self.changed:
            return "nothing was changed"
        try:
            outcome = self._restore(previous) if previous else self._remove(is_new_runtime)
            self.cluster.delete("ControllerRevision", self.snapshot_name)
        except ServiceError as error:
            return f"and rolling back failed: {error}"
        return outcome

    def _remove(self, is_new_runtime: bool) -> str:
        self.cluster.delete("InferenceService", self.name)
        if is_new_runtime and self.runtime is not None:
            self.cluster.delete("ServingRuntime", _name(self.runtime))
        if not self._poll(lambda: self.cluster.find("InferenceService", self.name) is None):
            raise ServiceError(f"InferenceService {self.name} is still being deleted")
        self.record["rolled_back"] = "deleted"
        return f"rolled back: {self.name} did not exist before and is deleted"

    def _restore(self, previous: Manifest) -> str:
        failed = latest_revision(self.cluster.find("InferenceService", self.name))
        manifest = _restored(self.service, previous)
        self.cluster.apply(manifest)
        uri = previous["annotations"].get("vlmflow.dev/model-uri", "the previous spec")
        self.record["rolled_back"] = uri
        self._wait_until_ready(manifest, old=failed if failed != previous["revision"] else "")
        return f"rolled back to {uri}, which is ready"

    def _wait_until_ready(self, manifest: Manifest, old: str) -> Manifest:
        """Wait until the service matches `manifest` and the revision `old` is replaced. Returns the service."""
        live: Manifest = {}

        def ready() -> bool:
            nonlocal live
            live = self.cluster.find("InferenceService", self.name) or {}
            return not pending_conditions(self.cluster, live, manifest, old)

        if self._poll(ready):
            return live
        pending = pending_conditions(self.cluster, live, manifest, old)
        raise ServiceError(
            f"InferenceService {self.name} in {self.cluster.namespace}: not ready in {self.config.timeout:g} s "
            f"(deploy.timeout): {pending}{last_failure(self.cluster, live, self.name)}"
        )

    def _poll(self, done: Callable[[], bool]) -> bool:
        """Call `done` until it is true, at most for the configured timeout. Returns whether it became true."""
        deadline = time.monotonic() + self.config.timeout
        while True:
            try:
                if done():
                    return True
            except ServiceError as error:  # the API server may be unavailable for a while
                if time.monotonic() > deadline or (isinstance(error, KubeApiError) and error.status < 500):
                    raise
                logger.warning("%s", error)
            if time.monotonic() > deadline:
                return False
            time.sleep(min(_POLL_SECONDS, self.config.timeout / 10))

    def _endpoint_url(self, manifest: Manifest, live: Manifest) -> tuple[str, str]:
        """Return the URL at which to test `manifest`, and the header Host if that is the URL of an ingress."""
        target = address(live)
        if manifest["spec"].get("canary"):  # its own Service, so that every request reaches it
            parts = urlsplit(target)
            entry = manifest["spec"]["canary"][0]["predictor"]["name"]
            host = parts.netloc.replace(f"{self.name}-predictor", f"{self.name}-{entry}-predictor", 1)
            target = urlunsplit(parts._replace(netloc=host))
        elif "canaryTrafficPercent" in manifest["spec"]["predictor"]:
            traffic = live["status"]["components"]["predictor"].get("traffic", [])
            urls = [entry["url"] for entry in traffic if entry.get("tag") == "latest" and entry.get("url")]
            if not urls:
                raise ServiceError(f"InferenceService {self.name}: the canary has no URL of its own (tag latest)")
            target = urls[0]
        return (self.config.url, urlsplit(target).netloc) if self.config.url else (target, "")

    def _wait_for_route(self, url: str, host: str) -> None:
        """Wait a little until the gateway routes to the endpoint. If it never does, the smoke test fails."""
        deadline = time.monotonic() + min(_ROUTE_SECONDS, self.config.timeout)
        headers = {"Host": host} if host else {}
        while time.monotonic() < deadline:
            try:
                models = f"{url}{OPENAI_PATHS[self.config.runtime]}/models"
                if httpx.get(models, headers=headers, timeout=5).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            time.sleep(_POLL_SECONDS / 2)


def _previous(live: Manifest | None) -> Manifest | None:
    """Return what is needed to restore the live service: spec, labels, annotations and revision."""
    if live is None:
        return None
    annotations = live["metadata"].get("annotations") or {}
    return {
        "spec": live["spec"],
        "labels": live["metadata"].get("labels") or {},
        "annotations": {key: value for key, value in annotations.items() if key != _KUBECTL},
        "revision": latest_revision(live),
    }


def _same_digest(spec: Manifest, other: Manifest) -> bool:
    return deployment_digest(spec) == deployment_digest(other)


def _restored(service: Manifest, previous: Manifest) -> Manifest:
    """Return the manifest of the service as it was before."""
    metadata = {key: previous[key] for key in ("labels", "annotations")}
    return {**service, "metadata": {**service["metadata"], **metadata}, "spec": previous["spec"]}


def _as_canary(previous: Manifest, service: Manifest, percent: int) -> Manifest:
    """Return the previous service with the new predictor as its canary, which KServe does not scale."""
    predictor, metadata = copy.deepcopy(service["spec"]["predictor"]), service["metadata"]
    for key in ("maxReplicas", "scaleMetric", "scaleMetricType", "scaleTarget", "autoScaling"):
        predictor.pop(key, None)
    predictor |= {"name": f"v{metadata['labels']['vlmflow.dev/model-version']}", "minReplicas": 1}
    predictor["labels"] = {**metadata["labels"], **predictor["labels"]}
    predictor["annotations"] = metadata["annotations"]
    canary = _restored(service, previous)
    return {**canary, "spec": {**previous["spec"], "canary": [{"trafficPercent": percent, "predictor": predictor}]}}


def _same_run(manifest: Manifest, live: Manifest) -> Manifest:
    """Return `manifest` with the run ID of the live service, because a new ID would restart the pods."""
    annotations = {k: v for k, v in manifest["metadata"]["annotations"].items() if k != RUN}
    if run := (live["metadata"].get("annotations") or {}).get(RUN):
        annotations[RUN] = run
    return {**manifest, "metadata": {**manifest["metadata"], "annotations": annotations}}


def _is_deployed(previous: Manifest, service: Manifest) -> bool:
    """Whether the previous deployment is already `service`, with all of the requests."""
    spec = previous["spec"]
    has_canary = spec.get("canary") or "canaryTrafficPercent" in spec["predictor"]
    return not has_canary and _same_digest(spec, service["spec"])


def _name(manifest: Manifest) -> str:
    return manifest["metadata"]["name"]
