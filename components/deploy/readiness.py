"""Whether an InferenceService is what was asked for.

KServe's Ready alone will not do: while a Deployment is replaced, or before the controller has looked, it is that of the
version before. So the pods, or with Knative the revision, have to be the new ones.
"""

from typing import Any

from components.deploy.cluster import Cluster
from components.deploy.manifest import DIGEST
from vlmflow.errors import ServiceError

Manifest = dict[str, Any]


def pending_conditions(cluster: Cluster, live: Manifest, manifest: Manifest, old: str) -> str:
    """What a service still waits for until it is as `manifest` says, or nothing.

    Args:
        live: the service as it is.
        old: Knative's revision that it must no longer be, or "".
    """
    spec, status = manifest["spec"], live.get("status") or {}
    conditions = {each["type"]: each for each in status.get("conditions") or []}
    wanted = ["Ready", *(["CanaryPredictorReady"] if spec.get("canary") else [])]
    if missing := [name for name in wanted if conditions.get(name, {}).get("status") != "True"]:
        return _unmet_conditions(conditions, missing)
    if not address(live):
        return "it has no address"
    if manifest["metadata"]["annotations"].get("serving.kserve.io/deploymentMode") == "Knative":
        return _pending_revision(_predictor(live), spec["predictor"].get("canaryTrafficPercent", 100), old)
    pods = cluster.items("Pod", f"serving.kserve.io/inferenceservice={manifest['metadata']['name']}")
    return _pending_pods(pods, {deployment_digest(part) for part in [spec, *spec.get("canary", [])]})


def last_failure(cluster: Cluster, live: Manifest, name: str) -> str:
    """What the model's last failure and the last warnings say; they are an extra, and may be missing."""
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
    """Where it answers in the cluster, or nothing."""
    status = live.get("status") or {}
    return (status.get("address") or {}).get("url") or status.get("url") or ""


def deployment_digest(part: Manifest) -> str:
    """Which deployment a spec, or a canary of it, is; "" for one that is not ours."""
    return (part["predictor"].get("labels") or {}).get(DIGEST, "")


def latest_revision(live: Manifest | None) -> str:
    """Knative's latest revision; in Standard mode there is none, and the deployment's digest stands for it."""
    return _predictor(live).get("latestCreatedRevision") or (deployment_digest(live["spec"]) if live else "")


def _predictor(live: Manifest | None) -> Manifest:
    return (((live or {}).get("status") or {}).get("components") or {}).get("predictor") or {}


def _unmet_conditions(conditions: dict[str, Manifest], missing: list[str]) -> str:
    told = [c for c in conditions.values() if c.get("status") != "True" and c.get("message")]
    lines = [f"{c['type']}: {c.get('reason') or c.get('status')}: {c['message']}" for c in told]
    return "; ".join(lines) or f"{', '.join(missing)}: the controller says nothing of it"


def _pending_revision(part: Manifest, percent: int, old: str) -> str:
    created, ready = part.get("latestCreatedRevision"), part.get("latestReadyRevision")
    if not created or created == old:
        return f"no new revision after {old or 'none'}"
    if created != ready:
        return f"revision {created} is not ready, {ready} is"
    share = sum(each.get("percent") or 0 for each in part.get("traffic") or [] if each.get("latestRevision"))
    return "" if share >= percent else f"revision {created} has {share} % of the requests, expected {percent}"


def _pending_pods(pods: list[Manifest], digests: set[str]) -> str:
    """Every digest has a pod that is ready, and no other pod is left that would answer instead.

    A spec that was not applied by us has no digest, and then nothing is known of its pods.
    """
    ended = ("Failed", "Succeeded")
    staying = [p for p in pods if not p["metadata"].get("deletionTimestamp") and p["status"].get("phase") not in ended]
    known = digests - {""}
    of = {digest: [p for p in staying if p["metadata"].get("labels", {}).get(DIGEST) == digest] for digest in known}
    for digest, its in of.items():
        if not any(_is_ready(pod) for pod in its):
            return f"no pod of deployment {digest} is ready"
    if known == digests and (others := len(staying) - sum(map(len, of.values()))):
        return f"{others} pods of the deployment before are still there"
    return ""


def _is_ready(pod: Manifest) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or []
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)
