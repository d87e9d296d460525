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
from components.deploy.manifest import DIGEST
from components.deploy.runtimes import OPENAI
from components.deploy.section import Deployment
from components.errors import ServiceError

logger = logging.getLogger(__name__)

RUN = "vlmflow.dev/kfp-run"
_KUBECTL = "kubectl.kubernetes.io/last-applied-configuration"
_POLL = 1.0  # s between two looks
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
    section: Deployment
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
        noted = self.cluster.find("ControllerRevision", self.note)  # by a step that was killed
        if noted is not None and live is None:
            self.cluster.delete("ControllerRevision", self.note)
            noted = None
        before = noted["data"]["before"] if noted else _before(live)
        phases = self._phases(before)
        made = self.runtime is not None and self.cluster.find("ServingRuntime", _name(self.runtime)) is None
        self.changed = noted is not None
        try:
            if self.runtime is not None:
                self.cluster.apply(self.runtime)
            exchanges = [self._try(manifest, before) for manifest in phases][-1]
        except Exception as error:
            back = self._back(before, made)
            if isinstance(error, ServiceError):
                raise ServiceError(f"{error}; {back}") from error
            raise
        self.cluster.delete("ControllerRevision", self.note)
        self.record["changed"] = self.changed
        logger.info("%s: %s", self.name, "deployed" if self.changed else "nothing to change, and it answers")
        return exchanges

    @property
    def name(self) -> str:
        """Of the InferenceService."""
        return _name(self.service)

    @property
    def note(self) -> str:
        """Of the ControllerRevision that keeps what was there before."""
        return f"{self.name}-before"

    def _phases(self, before: Manifest | None) -> list[Manifest]:
        """What is applied in turn: the canary, where there is something beside which it can be one, and the whole."""
        if not self.section.canary or before is None or _settled(before, self.service):
            return [self.service]
        canary = copy.deepcopy(self.service)
        if self.section.mode == "Knative":
            canary["spec"]["predictor"]["canaryTrafficPercent"] = self.section.canary
        else:
            self._check_routes()
            canary = _beside(before, self.service, self.section.canary)
        return [canary, self.service] if self.section.promote else [canary]

    def _check_routes(self) -> None:
        """In Standard mode KServe gives a share of the requests to a canary by a HTTPRoute, and by nothing else."""
        route = f"{self.name}-predictor"
        try:
            found = self.cluster.find("HTTPRoute", route)
        except Refused as refusal:
            if refusal.status == 403:
                raise
            found = None
        if found is None:
            raise ServiceError(
                f"deploy.canary: there is no HTTPRoute {route} in {self.cluster.namespace}, so nothing would split the "
                "requests; let KServe use the Gateway API (enableGatewayApi), set deploy.mode: Knative, or "
                "deploy.canary: 0"
            )

    def _try(self, manifest: Manifest, before: Manifest | None) -> list[dict[str, Any]]:
        """Apply a phase, wait until it is ready, and ask it."""
        live = self.cluster.find("InferenceService", self.name)
        if live is not None and _digest(live["spec"]) == _digest(manifest["spec"]):
            manifest = _of_run(manifest, live)
        if live is None or not self._same(manifest, live):
            self._note(before)
            self.changed = True
        self.cluster.apply(manifest)
        logger.info("%s: %s", self.name, "applied" if self.changed else "is as it should be")
        moved = self.changed and before is not None and _digest(before["spec"]) != _digest(manifest["spec"])
        ready = self._wait(manifest, old=before["revision"] if before and moved else "")
        address, host = self._address(manifest, ready)
        self.record |= {"url": address, **({"host": host} if host else {}), "revision": _created(ready)}
        self._routed(address, host)
        return self.smoke(address, host)

    def _same(self, manifest: Manifest, live: Manifest) -> bool:
        """Whether the cluster would change nothing that runs; it fills in defaults, so that it is asked."""
        planned = self.cluster.apply(manifest, dry_run=True)
        return planned["metadata"]["generation"] == live["metadata"]["generation"]

    def _note(self, before: Manifest | None) -> None:
        """Keep what is there until the new version has answered."""
        if not self.changed:
            metadata = {"name": self.note, "namespace": self.cluster.namespace}
            kept = {"apiVersion": "apps/v1", "kind": "ControllerRevision", "metadata": metadata, "revision": 1}
            self.cluster.apply({**kept, "data": {"before": before}})

    def _back(self, before: Manifest | None, made: bool) -> str:
        """Bring back what was there. Returns what was done, for the message; it raises nothing of the cluster's."""
        if not self.changed:
            return "nothing was changed"
        try:
            told = self._restore(before) if before else self._remove(made)
            self.cluster.delete("ControllerRevision", self.note)
        except ServiceError as error:
            return f"and rolling back failed: {error}"
        return told

    def _remove(self, made: bool) -> str:
        self.cluster.delete("InferenceService", self.name)
        if made and self.runtime is not None:
            self.cluster.delete("ServingRuntime", _name(self.runtime))
        if not self._until(lambda: self.cluster.find("InferenceService", self.name) is None):
            raise ServiceError(f"InferenceService {self.name} is still being deleted")
        self.record["rolled_back"] = "deleted"
        return f"rolled back: {self.name} was not there before and is deleted"

    def _restore(self, before: Manifest) -> str:
        failed = _created(self.cluster.find("InferenceService", self.name))
        old = _with(self.service, before)
        self.cluster.apply(old)
        self.record["rolled_back"] = uri = before["annotations"].get("vlmflow.dev/model-uri", "the spec before")
        self._wait(old, old=failed if failed != before["revision"] else "")
        return f"rolled back to {uri}, which is ready"

    # -- readiness

    def _wait(self, manifest: Manifest, old: str) -> Manifest:
        """Wait until the service is ready as `manifest` says, and no longer with the revision `old`. Returns it."""
        live: Manifest = {}

        def ready() -> bool:
            nonlocal live
            live = self.cluster.find("InferenceService", self.name) or {}
            return not self._lacks(live, manifest, old)

        if self._until(ready):
            return live
        raise ServiceError(
            f"InferenceService {self.name} in {self.cluster.namespace}: not ready in {self.section.timeout:g} s "
            f"(deploy.timeout): {self._lacks(live, manifest, old)}{self._told(live)}"
        )

    def _until(self, done: Callable[[], bool]) -> bool:
        deadline = time.monotonic() + self.section.timeout
        while not done():
            if time.monotonic() > deadline:
                return False
            time.sleep(min(_POLL, self.section.timeout / 10))
        return True

    def _lacks(self, live: Manifest, manifest: Manifest, old: str) -> str:
        """What it still waits for, or nothing.

        KServe's Ready alone will not do: while a Deployment is replaced, or before the controller has looked, it is
        that of the version before. So the pods, or with Knative the revision, have to be the new ones.
        """
        spec, status = manifest["spec"], live.get("status") or {}
        conditions = {each["type"]: each for each in status.get("conditions") or []}
        wanted = ["Ready", *(["CanaryPredictorReady"] if spec.get("canary") else [])]
        if missing := [name for name in wanted if conditions.get(name, {}).get("status") != "True"]:
            return _conditions(conditions, missing)
        if not _target(live):
            return "it has no address"
        if self.section.mode == "Knative":
            return _revision_lacks(status, spec["predictor"].get("canaryTrafficPercent", 100), old)
        digests = {p["predictor"]["labels"][DIGEST] for p in [spec, *spec.get("canary", [])] if _digest(p)}
        return _pods_lack(self._pods(), digests)

    def _pods(self) -> list[Manifest]:
        return self.cluster.items("Pod", f"serving.kserve.io/inferenceservice={self.name}")

    def _told(self, live: Manifest) -> str:
        """What the model's last failure and the last warnings say; they are an extra, and may be missing."""
        failure = ((live.get("status") or {}).get("modelStatus") or {}).get("lastFailureInfo") or {}
        told = [f"{failure.get('reason', '')}: {failure['message']}"] if failure.get("message") else []
        try:
            events = [e for e in self.cluster.items("Event") if e["involvedObject"]["name"].startswith(self.name)]
        except ServiceError as error:
            told.append(f"its events cannot be read: {error}")
            events = []
        events = [e for e in events if e.get("type") == "Warning"] or events
        events.sort(key=lambda e: str(e.get("lastTimestamp") or e.get("eventTime") or ""))
        told += [f"{e['involvedObject']['name']}: {e.get('reason')}: {e.get('message')}" for e in events[-3:]]
        return "".join(f"; {' '.join(line.split())[:300]}" for line in told)

    # -- the address

    def _address(self, manifest: Manifest, live: Manifest) -> tuple[str, str]:
        """Where to ask for what `manifest` brought, and the header Host where that is an ingress."""
        target = _target(live)
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

    def _routed(self, address: str, host: str) -> None:
        """Wait a little for gateways: they hear of a revision after it is ready. What remains, the smoke test tells."""
        deadline = time.monotonic() + min(_ROUTE_SECONDS, self.section.timeout)
        headers = {"Host": host} if host else {}
        while time.monotonic() < deadline:
            try:
                url = f"{address}{OPENAI[self.section.runtime]}/models"
                if httpx.get(url, headers=headers, timeout=5).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            time.sleep(_POLL / 2)


def _before(live: Manifest | None) -> Manifest | None:
    """What to return to."""
    if live is None:
        return None
    annotations = live["metadata"].get("annotations") or {}
    return {
        "spec": live["spec"],
        "labels": live["metadata"].get("labels") or {},
        "annotations": {key: value for key, value in annotations.items() if key != _KUBECTL},
        "revision": _created(live),
    }


def _with(service: Manifest, before: Manifest) -> Manifest:
    """The service as it was before."""
    marks = {key: before[key] for key in ("labels", "annotations")}
    return {**service, "metadata": {**service["metadata"], **marks}, "spec": before["spec"]}


def _beside(before: Manifest, service: Manifest, percent: int) -> Manifest:
    """The service as it was before, and the new predictor as its canary, which KServe does not scale."""
    predictor, metadata = copy.deepcopy(service["spec"]["predictor"]), service["metadata"]
    for key in ("maxReplicas", "scaleMetric", "scaleMetricType", "scaleTarget", "autoScaling"):
        predictor.pop(key, None)
    predictor |= {"name": f"v{metadata['labels']['vlmflow.dev/model-version']}", "minReplicas": 1}
    predictor["labels"] = {**metadata["labels"], **predictor["labels"]}
    predictor["annotations"] = metadata["annotations"]
    canary = _with(service, before)
    return {**canary, "spec": {**before["spec"], "canary": [{"trafficPercent": percent, "predictor": predictor}]}}


def _of_run(manifest: Manifest, live: Manifest) -> Manifest:
    """The same, deployed by the run that deployed it: another run's id is no reason to start the pods anew."""
    annotations = {k: v for k, v in manifest["metadata"]["annotations"].items() if k != RUN}
    if run := (live["metadata"].get("annotations") or {}).get(RUN):
        annotations[RUN] = run
    return {**manifest, "metadata": {**manifest["metadata"], "annotations": annotations}}


def _settled(before: Manifest, service: Manifest) -> bool:
    """Whether what is there is this deployment already, with all requests."""
    spec = before["spec"]
    alone = not spec.get("canary") and "canaryTrafficPercent" not in spec["predictor"]
    return alone and _digest(spec) == _digest(service["spec"])


def _digest(part: Manifest) -> str:
    return (part["predictor"].get("labels") or {}).get(DIGEST, "")


def _name(manifest: Manifest) -> str:
    return manifest["metadata"]["name"]


def _predictor_status(live: Manifest | None) -> Manifest:
    return (((live or {}).get("status") or {}).get("components") or {}).get("predictor") or {}


def _created(live: Manifest | None) -> str:
    """Knative's latest revision; in Standard mode there is none, and the deployment's digest stands for it."""
    return _predictor_status(live).get("latestCreatedRevision") or (_digest(live["spec"]) if live else "")


def _target(live: Manifest) -> str:
    status = live.get("status") or {}
    return (status.get("address") or {}).get("url") or status.get("url") or ""


def _conditions(conditions: dict[str, Manifest], missing: list[str]) -> str:
    told = [c for c in conditions.values() if c.get("status") != "True" and c.get("message")]
    lines = [f"{c['type']}: {c.get('reason') or c.get('status')}: {c['message']}" for c in told]
    return "; ".join(lines) or f"{', '.join(missing)}: the controller says nothing of it"


def _revision_lacks(status: Manifest, percent: int, old: str) -> str:
    part = (status.get("components") or {}).get("predictor") or {}
    created, ready = part.get("latestCreatedRevision"), part.get("latestReadyRevision")
    if not created or created == old:
        return f"no new revision after {old or 'none'}"
    if created != ready:
        return f"revision {created} is not ready, {ready} is"
    share = sum(each.get("percent") or 0 for each in part.get("traffic") or [] if each.get("latestRevision"))
    return "" if share >= percent else f"revision {created} has {share} % of the requests, expected {percent}"


def _pods_lack(pods: list[Manifest], digests: set[str]) -> str:
    """Every digest has a pod that is ready, and no other pod is left that would answer instead."""
    staying = [pod for pod in pods if not pod["metadata"].get("deletionTimestamp")]
    of = {digest: [p for p in staying if p["metadata"].get("labels", {}).get(DIGEST) == digest] for digest in digests}
    for digest, its in of.items():
        if not any(_is_ready(pod) for pod in its):
            return f"no pod of deployment {digest} is ready"
    if digests and (others := len(staying) - sum(map(len, of.values()))):
        return f"{others} pods of the deployment before are still there"
    return ""


def _is_ready(pod: Manifest) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or []
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)
