"""The outcome of a run's steps, from the Argo workflow of KFP.

The status that KFP passes to an exit handler is the state of the group of steps in its metadata store. It stays RUNNING
after a loop, or if all steps were cached, and FAILED after a retry that succeeded. The workflow has the outcome as soon
as the exit handler starts.
"""

import base64
import gzip
import json
from typing import Any

from vlmflow.runtime.kube_client import KubeClient

GROUP = "exit-handler-1"  # KFP's name of the group of steps before an exit handler
_STATES = {"Succeeded": "SUCCEEDED", "Failed": "FAILED", "Error": "FAILED"}


def find_workflow(kfp_run: str) -> dict[str, Any] | None:
    """Return the workflow of a KFP run, in the namespace of this pod; None if there is none.

    Raises:
        ServiceError: no cluster, or the account may not read workflows.
    """
    cluster = KubeClient("", needed_by="the final status of the run", namespace_setting="the namespace of the run")
    found = cluster.items("Workflow", f"pipeline/runid={kfp_run}")
    return found[0] if found else None


def outcome(workflow: dict[str, Any]) -> tuple[str, str] | None:
    """Return the state (SUCCEEDED, FAILED or CANCELED) of a workflow's steps, and its message; None while they run."""
    status, spec = workflow.get("status", {}), workflow.get("spec", {})
    if packed := status.get("compressedNodes"):  # Argo compresses large ones
        nodes = json.loads(gzip.decompress(base64.b64decode(packed)))
    else:
        nodes = status.get("nodes", {})
    for node in nodes.values():
        if node.get("displayName") == GROUP and node.get("phase") in _STATES:
            state = _STATES[node["phase"]]
            if state == "FAILED" and (spec.get("shutdown") or spec.get("activeDeadlineSeconds") == 0):
                state = "CANCELED"  # `Terminate` in the UI sets the deadline to 0
            return state, node.get("message", "") if state == "FAILED" else ""
    return None
