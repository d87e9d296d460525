"""A job in the cluster: created or joined, its pods' lines handed on, waited for, and removed."""

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

logger = logging.getLogger(__name__)

POLL = 2.0  # s between two looks at a job
PATIENCE = "VLMFLOW_PATIENCE"  # s that pods may take until they run
NAMESPACE = "VLMFLOW_NAMESPACE"  # where jobs are created; by default that of the step
TELLING = re.compile(r"\w(?<!ChildFailed)(Error|Exception|Interrupt)\b|Signal \d+|error: ")  # torchrun's own says least


Where = tuple[str, str, str, str]  # group, version, namespace, plural


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of job: its resource, and how its state is read."""

    name: str
    group: str
    version: str
    plural: str
    ended: Callable[
        [dict[str, Any]], str | None
    ]  # status → None while it goes on, "" when it is done, or why it failed
    selector: str  # of its pods; {name} is the job's
    speaker: Callable[[dict[str, str]], str | None]  # labels of a pod → who speaks, None for one without lines of ours


@dataclass
class Watched:
    """A pod whose lines are handed on."""

    speaker: str
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=50))

    @property
    def last(self) -> str:
        """The line that says most of an end: the last that names an error, or the last."""
        telling = [line for line in self.lines if TELLING.search(line)]
        return (telling or [line for line in self.lines if line.strip()] or ["no line"])[-1].strip()


class Cluster:
    """The cluster that this step runs in, or that the current context of KUBECONFIG names.

    Raises:
        ServiceError: there is none.
    """

    def __init__(self, wanted_by: str):
        from kubeflow.common.utils import get_default_target_namespace
        from kubernetes import client, config

        named = {"config_file": os.environ["KUBECONFIG"]} if "KUBECONFIG" in os.environ else {}
        try:
            config.load_config(**named)
        except config.ConfigException as error:
            raise ServiceError(
                f"{wanted_by}: needs a cluster, and there is none here ({error}); run it in one, or set KUBECONFIG"
            ) from None
        self.namespace = os.environ.get(NAMESPACE) or get_default_target_namespace()
        self.custom, self.core = client.CustomObjectsApi(), client.CoreV1Api()

    def run(self, kind: Kind, manifest: dict[str, Any], pods: int, prepare: Callable[[], None]) -> None:
        """Create the job, or join it where a step that was killed left it running, and wait until it has ended.

        Args:
            pods: how many have to run at once.
            prepare: called before the job is created.

        Raises:
            ServiceError: the cluster refuses the job, its pods do not come to run, or it failed.
        """
        name = manifest["metadata"]["name"]
        where = (kind.group, kind.version, self.namespace, kind.plural)
        found = self._get(where, name)
        if found is not None and kind.ended(found.get("status", {})):  # failed: another try
            self._delete(where, name)
            found = None
        if found is None:
            prepare()
            self._create(kind, where, manifest)
            logger.info("%s %s: %d pods in namespace %s", kind.name, name, pods, self.namespace)
        else:
            logger.info("%s %s: is there already, from a step that was killed; waiting for it", kind.name, name)
        with _terminable():
            try:
                self._wait(kind, where, name, pods)
            finally:
                self._delete(where, name)

    def _wait(self, kind: Kind, where: Where, name: str, pods: int) -> None:
        watched: dict[str, Watched] = {}
        threads: list[threading.Thread] = []
        patience = float(os.environ.get(PATIENCE, 600))
        seen = ran = time.monotonic()
        while True:
            try:
                job, phases = self._look(kind, where, name, watched, threads)
            except _unanswered() as error:  # a training of days outlives an API server
                if time.monotonic() - seen > patience:
                    raise ServiceError(f"{kind.name} {name}: the cluster does not answer: {error}") from error
                time.sleep(POLL)
                continue
            seen = time.monotonic()
            ended = kind.ended(job.get("status", {}))
            if ended is not None:
                for thread in threads:
                    thread.join(timeout=5)
                if ended:
                    raise ServiceError(f"{kind.name} {name}: failed: {self._story(watched, phases) or ended}")
                return
            running = sum(phase in ("Running", "Succeeded") for phase in phases.values())
            if running >= pods:
                ran = seen
            elif seen - ran > patience:
                raise ServiceError(
                    f"{kind.name} {name}: {running} of {pods} pods run after {patience:g} s: "
                    f"{self._reason(name)}; ask for less, give the cluster more, or set {PATIENCE} in seconds"
                )
            time.sleep(POLL)

    def _look(
        self,
        kind: Kind,
        where: Where,
        name: str,
        watched: dict[str, Watched],
        threads: list[threading.Thread],
    ) -> tuple[dict[str, Any], dict[str, str]]:
        """The job and its pods' phases; whoever began to speak is followed."""
        job = self._get(where, name)
        if job is None:
            raise ServiceError(f"{kind.name} {name}: was deleted while it ran; run the step again")
        phases = {}
        for pod in self.core.list_namespaced_pod(self.namespace, label_selector=kind.selector.format(name=name)).items:
            phases[pod.metadata.name] = pod.status.phase
            speaker = kind.speaker(pod.metadata.labels or {})
            if speaker and pod.status.phase not in (None, "Pending") and pod.metadata.name not in watched:
                watched[pod.metadata.name] = Watched(speaker)
                threads.append(self._follow(pod.metadata.name, watched[pod.metadata.name]))
        return job, phases

    def _follow(self, pod: str, watched: Watched) -> threading.Thread:
        """Hand on a pod's lines as they come."""
        from kubernetes import watch

        def tell() -> None:
            try:
                for line in watch.Watch().stream(
                    self.core.read_namespaced_pod_log, name=pod, namespace=self.namespace, follow=True
                ):
                    watched.lines.append(str(line))
                    logger.info("%s: %s", watched.speaker, line)
            except Exception as error:  # the pod is gone, and the job's state will tell
                logger.debug("%s: no more lines: %s", pod, error)

        thread = threading.Thread(target=tell, daemon=True)
        thread.start()
        return thread

    def _story(self, watched: dict[str, Watched], phases: dict[str, str]) -> str:
        """What those that did not end well said last; of pods that were started again, the last."""
        latest = {one.speaker: (phases.get(pod, "gone"), one.last) for pod, one in watched.items()}
        return "; ".join(f"{who} ({phase}): {last}" for who, (phase, last) in latest.items() if phase != "Succeeded")

    def _reason(self, name: str) -> str:
        """The last warning about the job or anything made for it; their names begin with the job's."""
        events = self.core.list_namespaced_event(self.namespace).items
        told = [event for event in events if event.involved_object.name.startswith(name)]
        told.sort(key=lambda event: str(event.last_timestamp or event.event_time or event.first_timestamp or ""))
        warnings = [event for event in told if event.type == "Warning"] or told
        return f"{warnings[-1].reason}: {warnings[-1].message}" if warnings else "the cluster gives no reason"

    def _get(self, where: Where, name: str) -> dict[str, Any] | None:
        from kubernetes.client import ApiException

        try:
            return self.custom.get_namespaced_custom_object(*where, name)  # type: ignore[return-value]
        except ApiException as error:
            if error.status == 404:
                return None
            raise

    def _create(self, kind: Kind, where: Where, manifest: dict[str, Any]) -> None:
        from kubernetes.client import ApiException

        try:
            self.custom.create_namespaced_custom_object(*where, manifest)
        except ApiException as error:
            raise ServiceError(
                f"{kind.name} {manifest['metadata']['name']}: the cluster refuses it ({error.status} {error.reason}): "
                f"{' '.join(str(error.body).split())[:300]}"
            ) from error

    def _delete(self, where: Where, name: str) -> None:
        """Remove the job and wait until its pods have gone too, a minute at most."""
        from kubernetes.client import ApiException

        try:
            self.custom.delete_namespaced_custom_object(*where, name, propagation_policy="Foreground")
            until = time.monotonic() + 60
            while self._get(where, name) is not None and time.monotonic() < until:
                time.sleep(POLL / 4)
        except _unanswered() as error:
            if not (isinstance(error, ApiException) and error.status == 404):
                logger.warning("%s: cannot be deleted: %s", name, " ".join(str(error).split())[:200])


def _unanswered() -> tuple[type[Exception], ...]:
    """What is raised when the API server refuses or is away."""
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    return ApiException, HTTPError


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM, which a pod gets when its run is cancelled, ends the wait as an error does: the job goes too."""

    def stop(*_: Any) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
