"""Decide whether an InferenceService has reached the spec that was applied.

KServe's condition Ready is not enough: while a Deployment is replaced, or before the controller has seen the new spec,
it is still that of the previous version. So the pods, or with Knative the revision, must be the new ones.
"""

from typing import Any

from components.deploy.manifest import DIGEST
from vlmflow.errors import ServiceError
from vlmflow.runtime.kube_client import KubeClient

Manifest = dict[str, Any]


def pending_conditions(cluster: KubeClient, live: Manifest, manifest: Manifest, old: str) -> str:
    """Return what the service still waits for before it matches `manifest`; "" if it matches.

    Args:
        live: the service as read from the cluster.
        old: the Knative revision that must be replaced, or "".
    """
    spec, status = manifest["spec"], live.get("status") or {}
    conditions = {condition["type"]: condition for condition in status.get("conditions") or []}
    required = ["Ready", *(["CanaryPredictorReady"] if spec.get("canary") else [])]
    if unmet := [name for name in required if conditions.get(name, {}).get("status") != "True"]:
        return _unmet_conditions(conditions, unmet)
    if not address(live):
        return "it has no address"
    if manifest["metadata"]["annotations"].get("serving.kserve.io/deploymentMode") == "Knative":
        return _pending_revision(_predictor(live), spec["predictor"].get("canaryTrafficPercent", 100), old)
    pods = cluster.items("Pod", f"serving.kserve.io/inferenceservice={manifest['metadata']['name']}")
    return _pending_pods(pods, {deployment_digest(part) for part in [spec, *spec.get("canary", [])]})


def last_failure(cluster: KubeClient, live: Manifest, name: str) -> str:
    """Return the model's last failure and the latest warnings, for an error message; they may be missing."""
    failure = ((live.get("status") or {}).get("modelStatus") or {}).get("lastFailureInfo") or {}
    lines = [f"{failure.get('reason', '')}: {failure['message']}"] if failure.get("message") else []
    try:
        events = [e for e in cluster.items("Event") if e["involvedObject"]["name"].startswith(name)]
    except ServiceError as error:
        lines.append(f"its events cannot be read: {error}")
        events = []
    events = [e for e in events if e.get("type") == "Warning"] or events
    events.sort(key=lambda e: str(e.get("lastTimestamp") or e.get("eventTime") or ""))
    lines += [f"{e['involvedObject']['name']}: {e.get('reason')}: {e.get('message')}" for e in events[-3:]]
    return "".join(f"; {' '.join(line.split())[:300]}" for line in lines)


def address(live: Manifest) -> str:
    """Return the URL of the service in the cluster, or ""."""
    status = live.get("status") or {}
    return (status.get("address") or {}).get("url") or status.get("url") or ""


def deployment_digest(part: Manifest) -> str:
    """Return the digest label of a spec or of its canary; "" if vlmflow did not write it."""
    return (part["predictor"].get("labels") or {}).get(DIGEST, "")


def latest_revision(live: Manifest | None) -> str:
    """Return Knative's latest revision. Standard mode has no revisions, so there it is the deployment's digest."""
    return _predictor(live).get("latestCreatedRevision") or (deployment_digest(live["spec"]) if live else "")


def _predictor(live: Manifest | None) -> Manifest:
    return (((live or {}).get("status") or {}).get("components") or {}).get("predictor") or {}


def _unmet_conditions(conditions: dict[str, Manifest], unmet: list[str]) -> str:
    failing = [c for c in conditions.values() if c.get("status") != "True" and c.get("message")]
    lines = [f"{c['type']}: {c.get('reason') or c.get('status')}: {c['message']}" for c in failing]
    return "; ".join(lines) or f"{', '.join(unmet)}: the controller has not reported it yet"


def _pending_revision(predictor: Manifest, percent: int, old: str) -> str:
    """Check that Knative's new revision is ready and receives `percent` of the requests."""
    created, ready = predictor.get("latestCreatedRevision"), predictor.get("latestReadyRevision")
    if not created or created == old:
        return f"no new revision after {old or 'none'}"
    if created != ready:
        return f"revision {created} is not ready, {ready} is"
    targets = predictor.get("traffic") or []
    share = sum(target.get("percent") or 0 for target in targets if target.get("latestRevision"))
    return "" if share >= percent else f"revision {created} has {share} % of the requests, expected {percent}"


def _pending_pods(pods: list[Manifest], digests: set[str]) -> str:
    """Check that each digest has a ready pod, and that no pod of another deployment is left to answer instead.

    A spec that vlmflow did not write has no digest; then its pods cannot be identified, and other pods are accepted.
    """
    ended = ("Failed", "Succeeded")
    running = [p for p in pods if not p["metadata"].get("deletionTimestamp") and p["status"].get("phase") not in ended]
    known = digests - {""}
    by_digest = {
        digest: [p for p in running if p["metadata"].get("labels", {}).get(DIGEST) == digest] for digest in known
    }
    for digest, own_pods in by_digest.items():
        if not any(_is_ready(pod) for pod in own_pods):
            return f"no pod of deployment {digest} is ready"
    if known == digests and (others := len(running) - sum(map(len, by_digest.values()))):
        return f"{others} pods of the previous deployment are still running"
    return ""


def _is_ready(pod: Manifest) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or []
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)
