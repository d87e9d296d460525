"""Run a job in the cluster: create or rejoin it, forward its pods' logs, wait for it, and delete it."""

import logging
import os
import re
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from vlmflow.errors import ServiceError
from vlmflow.runtime.kube_client import ClusterUnreachable, KubeApiError, KubeClient

logger = logging.getLogger(__name__)

POLL_SECONDS = 2.0
PATIENCE = "VLMFLOW_PATIENCE"  # seconds that pods may take until they run, and the API server until it answers
NAMESPACE = "VLMFLOW_NAMESPACE"  # where jobs are created; by default the step's own namespace
ERROR_LINE = re.compile(r"\w(?<!ChildFailed)(Error|Exception|Interrupt)\b|Signal \d+|error: ")  # not torchrun's own


@dataclass(frozen=True, kw_only=True)
class JobKind:
    """A kind of job, and how its state is read.

    name: the Kubernetes kind.
    result: its status → None while it runs, "" if it succeeded, or why it failed.
    selector: label selector of its pods; {name} is replaced by the job's name.
    log_prefix: labels of a pod → the prefix of its log lines; None if its log is not forwarded.
    """

    name: str
    result: Callable[[dict[str, Any]], str | None]
    selector: str
    log_prefix: Callable[[dict[str, str]], str | None]


@dataclass
class PodLog:
    """The last lines of a pod whose log is forwarded."""

    prefix: str
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=50))

    @property
    def failure_line(self) -> str:
        """The last line that contains an error; otherwise the last line."""
        errors = [line for line in self.lines if ERROR_LINE.search(line)]
        return (errors or [line for line in self.lines if line.strip()] or ["no output"])[-1].strip()


class Job:
    """A job of the cluster.

    Args:
        kind: its kind.
        manifest: its manifest, with a name that is a hash of the work.
        num_pods: the number of pods that must run at the same time.
        needed_by: the setting that needs the job, for error messages.

    Raises:
        ServiceError: no cluster is configured.
    """

    def __init__(self, kind: JobKind, manifest: dict[str, Any], num_pods: int, *, needed_by: str):
        namespace = os.environ.get(NAMESPACE, "")
        self.cluster = KubeClient(namespace, needed_by=needed_by, namespace_setting=NAMESPACE)
        self.kind, self.manifest, self.num_pods = kind, manifest, num_pods
        self.name: str = manifest["metadata"]["name"]
        self._logs: dict[str, PodLog] = {}
        self._threads: list[threading.Thread] = []

    def __str__(self) -> str:
        return f"{self.kind.name} {self.name}"

    def run(self, prepare: Callable[[], None]) -> None:
        """Create the job, or rejoin it if a killed step left it running, and wait until it ends.

        Args:
            prepare: called before the job is created.

        Raises:
            ServiceError: the cluster refuses the job, its pods do not start, or it failed.
        """
        existing = self._find()
        if existing is not None and self.kind.result(existing.get("status", {})):  # failed: try again
            self._delete()
            existing = None
        if existing is None:
            prepare()
            self.cluster.create(self.manifest)
            logger.info("%s: %d pods in namespace %s", self, self.num_pods, self.cluster.namespace)
        else:
            logger.info("%s: is already running, from a step that was killed; waiting for it", self)
        with _sigterm_as_exit():
            try:
                self._wait()
            finally:
                self._delete()

    def _wait(self) -> None:
        patience = float(os.environ.get(PATIENCE, 600))
        last_answer = last_running = time.monotonic()
        while True:
            try:
                status, phases = self._poll()
            except (
                KubeApiError,
                ClusterUnreachable,
            ) as error:  # the API server may restart during a training
                if time.monotonic() - last_answer > patience:
                    raise ServiceError(f"{self}: the cluster does not answer: {error}") from error
                time.sleep(POLL_SECONDS)
                continue
            last_answer = time.monotonic()
            result = self.kind.result(status)
            if result is not None:
                for thread in self._threads:
                    thread.join(timeout=5)
                if result:
                    raise ServiceError(f"{self}: failed: {self._failure_lines(phases) or result}")
                return
            running = sum(phase in ("Running", "Succeeded") for phase in phases.values())
            if running >= self.num_pods:
                last_running = last_answer
            elif last_answer - last_running > patience:
                raise ServiceError(
                    f"{self}: {running} of {self.num_pods} pods run after {patience:g} s: {self._last_warning()}; "
                    f"request fewer resources, add nodes to the cluster, or increase {PATIENCE} (seconds)"
                )
            time.sleep(POLL_SECONDS)

    def _poll(self) -> tuple[dict[str, Any], dict[str, str]]:
        """Return the job's status and the phase of each pod; start to follow the logs of pods that have started."""
        job = self._find()
        if job is None:
            raise ServiceError(f"{self}: was deleted while it ran; run the step again")
        phases: dict[str, str] = {}
        for pod in self.cluster.items("Pod", self.kind.selector.format(name=self.name)):
            name: str = pod["metadata"]["name"]
            phase: str = (pod.get("status") or {}).get("phase", "Pending")
            phases[name] = phase
            prefix = self.kind.log_prefix(pod["metadata"].get("labels") or {})
            if prefix and phase != "Pending" and name not in self._logs:
                self._logs[name] = PodLog(prefix)
                self._threads.append(self._forward_log(name, self._logs[name]))
        return job.get("status", {}), phases

    def _forward_log(self, pod: str, log: PodLog) -> threading.Thread:
        """Log the pod's lines as they arrive."""

        def forward() -> None:
            try:
                for line in self.cluster.follow_log(pod):
                    log.lines.append(line)
                    logger.info("%s: %s", log.prefix, line)
            except Exception as error:  # the pod is gone; the job's status has the result
                logger.debug("%s: end of the log: %s", pod, error)

        thread = threading.Thread(target=forward, daemon=True)
        thread.start()
        return thread

    def _failure_lines(self, phases: dict[str, str]) -> str:
        """Return the failure line of each pod that did not succeed; after restarts, of the latest pod."""
        latest = {log.prefix: (phases.get(pod, "gone"), log.failure_line) for pod, log in self._logs.items()}
        return "; ".join(f"{name} ({phase}): {line}" for name, (phase, line) in latest.items() if phase != "Succeeded")

    def _last_warning(self) -> str:
        """Return the latest warning about the job or its pods, whose names start with the job's name."""
        events = [e for e in self.cluster.items("Event") if e["involvedObject"]["name"].startswith(self.name)]
        events.sort(key=lambda e: str(e.get("lastTimestamp") or e.get("eventTime") or e.get("firstTimestamp") or ""))
        warnings = [event for event in events if event.get("type") == "Warning"] or events
        return f"{warnings[-1].get('reason')}: {warnings[-1].get('message')}" if warnings else "no events"

    def _find(self) -> dict[str, Any] | None:
        return self.cluster.find(self.kind.name, self.name)

    def _delete(self) -> None:
        """Delete the job, and wait until its pods are gone too, at most a minute."""
        try:
            self.cluster.delete(self.kind.name, self.name)
            deadline = time.monotonic() + 60
            while self._find() is not None and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS / 4)
        except (KubeApiError, ClusterUnreachable) as error:
            logger.warning("%s: cannot be deleted: %s", self.name, error)


def producer_environment(image: str) -> dict[str, str]:
    """Return the variables by which the cards of the artifacts that a container writes name KFP's run and `image`."""
    return {"VLMFLOW_KFP_RUN": os.environ.get("VLMFLOW_KFP_RUN", ""), "VLMFLOW_IMAGE": image}


@contextmanager
def _sigterm_as_exit() -> Iterator[None]:
    """Raise SystemExit on SIGTERM, which a pod gets when its run is cancelled, so that the job is deleted."""

    def stop(*_: Any) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
