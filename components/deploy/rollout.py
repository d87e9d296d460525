"""A version goes to the cluster: applied, waited for, tried, promoted; or what was there before comes back.

What was there is kept in a ControllerRevision until the new version has answered. So a step that is killed meanwhile
loses nothing: the next one goes on from it. An annotation would not do: KServe hands those of an InferenceService on to
its pods, and starts them anew for each change.
"""

import copy
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import httpx

from components.deploy.cluster import Cluster, Refused
from components.deploy.config import DeployConfig
from components.deploy.readiness import address, deployment_digest, last_failure, latest_revision, pending_conditions
from components.deploy.runtimes import OPENAI_PATHS
from vlmflow.errors import ServiceError

logger = logging.getLogger(__name__)

RUN = "vlmflow.dev/kfp-run"
_KUBECTL = "kubectl.kubernetes.io/last-applied-configuration"
_POLL_SECONDS = 1.0  # s between two looks
_ROUTE_SECONDS = 30.0  # that a gateway may take until it knows a revision that is ready

Manifest = dict[str, Any]
Smoke = Callable[[str, str], list[dict[str, Any]]]  # address, header Host → exchanges


@dataclass
class Rollout:
    """One InferenceService, on its way to a new spec.

    Args:
        service, runtime: the manifests; None for a runtime that is the cluster's own.
        smoke: asks the endpoint at an address.
    """

    cluster: Cluster
    service: Manifest
    runtime: Manifest | None
    section: DeployConfig
    smoke: Smoke
    record: dict[str, Any] = field(default_factory=dict)  # for the transcript
    changed: bool = False

    def run(self) -> list[dict[str, Any]]:
        """Bring the version to its endpoint. Returns the exchanges with it.

        Raises:
            ServiceError: the cluster refuses, it is not ready in time, or it does not answer as it should; with what
                was rolled back.
        """
        live = self.cluster.find("InferenceService", self.name)
        noted = self.cluster.find("ControllerRevision", self.snapshot_name)  # by a step that was killed
        if noted is not None and live is None:
            self.cluster.delete("ControllerRevision", self.snapshot_name)
            noted = None
        before = noted["data"]["before"] if noted else _previous(live)
        phases = self._phases(before)
        made = self.runtime is not None and self.cluster.find("ServingRuntime", _name(self.runtime)) is None
        self.changed = noted is not None
        try:
            if self.runtime is not None:
                self.cluster.apply(self.runtime)
            exchanges = [self._apply_and_test(manifest, before) for manifest in phases][-1]
        except Exception as error:
            back = self._rollback(before, made)
            if isinstance(error, ServiceError):
                raise ServiceError(f"{error}; {back}") from error
            raise
        self.cluster.delete("ControllerRevision", self.snapshot_name)
        self.record["changed"] = self.changed
        logger.info("%s: %s", self.name, "deployed" if self.changed else "nothing to change, and it answers")
        return exchanges

    @property
    def name(self) -> str:
        """Of the InferenceService."""
        return _name(self.service)

    @property
    def snapshot_name(self) -> str:
        """Of the ControllerRevision that keeps what was there before."""
        return f"{self.name}-before"

    def _phases(self, before: Manifest | None) -> list[Manifest]:
        """What is applied in turn: the canary, where there is something beside which it can be one, and the whole."""
        if not self.section.canary or before is None or _is_deployed(before, self.service):
            return [self.service]
        canary = copy.deepcopy(self.service)
        if self.section.mode == "Knative":
            canary["spec"]["predictor"]["canaryTrafficPercent"] = self.section.canary
        else:
            self._check_routes()
            canary = _as_canary(before, self.service, self.section.canary)
        return [canary, self.service] if self.section.promote else [canary]

    def _check_routes(self) -> None:
        """In Standard mode KServe gives a share of the requests to a canary by a HTTPRoute, and by nothing else."""
        route = f"{self.name}-predictor"
        try:
            found = self.cluster.find("HTTPRoute", route)
        except Refused as refusal:
            if refusal.status:  # else the cluster does not know the kind
                raise
            found = None
        if found is None:
            raise ServiceError(
                f"deploy.canary: there is no HTTPRoute {route} in {self.cluster.namespace}, so nothing would split the "
                "requests; let KServe use the Gateway API (enableGatewayApi), set deploy.mode: Knative, or "
                "deploy.canary: 0"
            )

    def _apply_and_test(self, manifest: Manifest, before: Manifest | None) -> list[dict[str, Any]]:
        """Apply a phase, wait until it is ready, and ask it."""
        live = self.cluster.find("InferenceService", self.name)
        if live is not None and deployment_digest(live["spec"]) == deployment_digest(manifest["spec"]):
            manifest = _same_run(manifest, live)
        if live is None or not self._is_noop(manifest, live):
            self._save_previous(before)
            self.changed = True
        self.cluster.apply(manifest)
        logger.info("%s: %s", self.name, "applied" if self.changed else "is as it should be")
        moved = (
            self.changed
            and before is not None
            and deployment_digest(before["spec"]) != deployment_digest(manifest["spec"])
        )
        ready = self._wait_until_ready(manifest, old=before["revision"] if before and moved else "")
        url, host = self._endpoint_url(manifest, ready)
        self.record |= {"url": url, **({"host": host} if host else {}), "revision": latest_revision(ready)}
        self._wait_for_route(url, host)
        return self.smoke(url, host)

    def _is_noop(self, manifest: Manifest, live: Manifest) -> bool:
        """Whether the cluster would change nothing that runs; it fills in defaults, so that it is asked."""
        planned = self.cluster.apply(manifest, dry_run=True)
        return planned["metadata"]["generation"] == live["metadata"]["generation"]

    def _save_previous(self, before: Manifest | None) -> None:
        """Keep what is there until the new version has answered."""
        if not self.changed:
            metadata = {"name": self.snapshot_name, "namespace": self.cluster.namespace}
            kept = {"apiVersion": "apps/v1", "kind": "ControllerRevision", "metadata": metadata, "revision": 1}
            self.cluster.apply({**kept, "data": {"before": before}})

    def _rollback(self, before: Manifest | None, made: bool) -> str:
        """Bring back what was there. Returns what was done, for the message; it raises nothing of the cluster's."""
        if not self.changed:
            return "nothing was changed"
        try:
            done = self._restore(before) if before else self._remove(made)
            self.cluster.delete("ControllerRevision", self.snapshot_name)
        except ServiceError as error:
            return f"and rolling back failed: {error}"
        return done

    def _remove(self, made: bool) -> str:
        self.cluster.delete("InferenceService", self.name)
        if made and self.runtime is not None:
            self.cluster.delete("ServingRuntime", _name(self.runtime))
        if not self._poll(lambda: self.cluster.find("InferenceService", self.name) is None):
            raise ServiceError(f"InferenceService {self.name} is still being deleted")
        self.record["rolled_back"] = "deleted"
        return f"rolled back: {self.name} was not there before and is deleted"

    def _restore(self, before: Manifest) -> str:
        failed = latest_revision(self.cluster.find("InferenceService", self.name))
        old = _restored(self.service, before)
        self.cluster.apply(old)
        self.record["rolled_back"] = uri = before["annotations"].get("vlmflow.dev/model-uri", "the spec before")
        self._wait_until_ready(old, old=failed if failed != before["revision"] else "")
        return f"rolled back to {uri}, which is ready"

    def _wait_until_ready(self, manifest: Manifest, old: str) -> Manifest:
        """Wait until the service is ready as `manifest` says, and no longer with the revision `old`. Returns it."""
        live: Manifest = {}

        def ready() -> bool:
            nonlocal live
            live = self.cluster.find("InferenceService", self.name) or {}
            return not pending_conditions(self.cluster, live, manifest, old)

        if self._poll(ready):
            return live
        raise ServiceError(
            f"InferenceService {self.name} in {self.cluster.namespace}: not ready in {self.section.timeout:g} s "
            f"(deploy.timeout): {pending_conditions(self.cluster, live, manifest, old)}{last_failure(self.cluster, live, self.name)}"
        )

    def _poll(self, done: Callable[[], bool]) -> bool:
        deadline = time.monotonic() + self.section.timeout
        while True:
            try:
                if done():
                    return True
            except ServiceError as error:  # the API server may be away for a while
                if time.monotonic() > deadline or (isinstance(error, Refused) and error.status < 500):
                    raise
                logger.warning("%s", error)
            if time.monotonic() > deadline:
                return False
            time.sleep(min(_POLL_SECONDS, self.section.timeout / 10))

    def _endpoint_url(self, manifest: Manifest, live: Manifest) -> tuple[str, str]:
        """Where to ask for what `manifest` brought, and the header Host where that is an ingress."""
        target = address(live)
        if manifest["spec"].get("canary"):  # its own Service, so that not one request in five is what is tried
            parts = urlsplit(target)
            entry = manifest["spec"]["canary"][0]["predictor"]["name"]
            host = parts.netloc.replace(f"{self.name}-predictor", f"{self.name}-{entry}-predictor", 1)
            target = urlunsplit(parts._replace(netloc=host))
        elif "canaryTrafficPercent" in manifest["spec"]["predictor"]:
            traffic = live["status"]["components"]["predictor"].get("traffic", [])
            tagged = [each["url"] for each in traffic if each.get("tag") == "latest" and each.get("url")]
            if not tagged:
                raise ServiceError(f"InferenceService {self.name}: the canary has no address of its own (tag latest)")
            target = tagged[0]
        return (self.section.url, urlsplit(target).netloc) if self.section.url else (target, "")

    def _wait_for_route(self, url: str, host: str) -> None:
        """Wait a little for gateways: they hear of a revision after it is ready. What remains, the smoke test tells."""
        deadline = time.monotonic() + min(_ROUTE_SECONDS, self.section.timeout)
        headers = {"Host": host} if host else {}
        while time.monotonic() < deadline:
            try:
                models = f"{url}{OPENAI_PATHS[self.section.runtime]}/models"
                if httpx.get(models, headers=headers, timeout=5).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            time.sleep(_POLL_SECONDS / 2)


def _previous(live: Manifest | None) -> Manifest | None:
    """What to return to."""
    if live is None:
        return None
    annotations = live["metadata"].get("annotations") or {}
    return {
        "spec": live["spec"],
        "labels": live["metadata"].get("labels") or {},
        "annotations": {key: value for key, value in annotations.items() if key != _KUBECTL},
        "revision": latest_revision(live),
    }


def _restored(service: Manifest, before: Manifest) -> Manifest:
    """The service as it was before."""
    marks = {key: before[key] for key in ("labels", "annotations")}
    return {**service, "metadata": {**service["metadata"], **marks}, "spec": before["spec"]}


def _as_canary(before: Manifest, service: Manifest, percent: int) -> Manifest:
    """The service as it was before, and the new predictor as its canary, which KServe does not scale."""
    predictor, metadata = copy.deepcopy(service["spec"]["predictor"]), service["metadata"]
    for key in ("maxReplicas", "scaleMetric", "scaleMetricType", "scaleTarget", "autoScaling"):
        predictor.pop(key, None)
    predictor |= {"name": f"v{metadata['labels']['vlmflow.dev/model-version']}", "minReplicas": 1}
    predictor["labels"] = {**metadata["labels"], **predictor["labels"]}
    predictor["annotations"] = metadata["annotations"]
    canary = _restored(service, before)
    return {**canary, "spec": {**before["spec"], "canary": [{"trafficPercent": percent, "predictor": predictor}]}}


def _same_run(manifest: Manifest, live: Manifest) -> Manifest:
    """The same, deployed by the run that deployed it: another run's id is no reason to start the pods anew."""
    annotations = {k: v for k, v in manifest["metadata"]["annotations"].items() if k != RUN}
    if run := (live["metadata"].get("annotations") or {}).get(RUN):
        annotations[RUN] = run
    return {**manifest, "metadata": {**manifest["metadata"], "annotations": annotations}}


def _is_deployed(before: Manifest, service: Manifest) -> bool:
    """Whether what is there is this deployment already, with all requests."""
    spec = before["spec"]
    alone = not spec.get("canary") and "canaryTrafficPercent" not in spec["predictor"]
    return alone and deployment_digest(spec) == deployment_digest(service["spec"])


def _name(manifest: Manifest) -> str:
    return manifest["metadata"]["name"]
