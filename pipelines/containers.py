"""Each step in its container on this machine, by kfp.local's DockerRunner: what a cluster runs, without one.

The engine is docker, or podman through its docker socket (DOCKER_HOST). A container sees the folder of runs, and
what the recipe names on this machine; its root file system is read-only and its user is not root.
"""

import json
import os
import resource
from pathlib import Path
from typing import Any

from kfp import local
from kfp.local import docker_task_handler
from kfp.local.status import Status

from vlmflow.errors import ServiceError
from vlmflow.runtime.step import image
from vlmflow.runtime.step_cache import named
from vlmflow.tracking import mlflow_run

HANDED_ON = ("VLMFLOW_", "MLFLOW_", "AWS_", "HF_", "TOKENIZERS_", "TRANSFORMERS_", "OMP_", "FSSPEC_")
OWN_USER = "1000:0"  # of the image; files that root's group may write, it may write
LIMIT = 32768  # of open files and of processes
SHARED_MEMORY = "1g"  # workers hand batches over in it; an engine's own 64 MB are not enough


def runner(folder: Path, sections: dict[str, Any]) -> local.DockerRunner:
    """A runner of steps in containers.

    Args:
        folder: the run's folder.
        sections: the recipe; the files and folders that it names are mounted where they are, read-only.

    Raises:
        ServiceError: no engine answers, or it lacks the image.
    """
    from docker.types import Mount

    _ready()
    here = Path.cwd()
    seen = {str((here / path).resolve()) for path in named(sections)}
    if os.getuid() == 0:
        _share(folder)
    docker_task_handler.DockerTaskHandler = Checked
    return local.DockerRunner(
        user=OWN_USER if os.getuid() == 0 else f"{os.getuid()}:{os.getgid()}",
        environment={
            **{name: value for name, value in os.environ.items() if name.startswith(HANDED_ON)},
            "VLMFLOW_STEP_IMAGE": image("step"),
        },
        mounts=[
            Mount(str(folder.parent), str(folder.parent), type="bind"),
            *(Mount(place, place, type="bind", read_only=True) for place in sorted(seen)),
        ],
        working_dir=str(here if seen else folder),
        network_mode="host",
        read_only=True,
        tmpfs={"/tmp": "exec,mode=1777"},
        cap_drop=["ALL"],
        security_opt=["no-new-privileges"],
        shm_size=SHARED_MEMORY,
        ulimits=[_limit("nofile", resource.RLIMIT_NOFILE), _limit("nproc", resource.RLIMIT_NPROC)],
    )


class Checked(docker_task_handler.DockerTaskHandler):
    """kfp.local takes a container that failed and was gone at once for a success: the step's own file tells."""

    def run(self) -> Status:
        """Run the container; FAILURE unless the step has ended and written what it put out."""
        found = super().run()
        outputs = json.loads(self.full_command[self.full_command.index("--executor_input") + 1])["outputs"]
        return found if Path(outputs["outputFile"]).exists() else Status.FAILURE


def _share(folder: Path) -> None:
    """Let root's group write what root makes in the folder of runs: the containers' user is in it."""
    os.umask(0o002)
    for place in (folder.parent, folder):
        place.chmod(0o775)
    if mlflow_run.enabled() and mlflow_run.store().startswith("sqlite"):
        mlflow_run.client()
        for file in folder.parent.glob("mlflow.db*"):  # SQLite does not go by the umask
            file.chmod(0o664)


def _limit(name: str, kind: int) -> Any:
    """This process's own limit, as far as podman's service, which has lowered its own, may hand it on."""
    from docker.types import Ulimit

    soft, hard = (LIMIT if value == resource.RLIM_INFINITY else min(value, LIMIT) for value in resource.getrlimit(kind))
    return Ulimit(name=name, soft=soft, hard=hard)


def _ready() -> None:
    import docker
    from docker.errors import DockerException, ImageNotFound

    try:
        client = docker.from_env()
        client.images.get(image("step"))
    except ImageNotFound:
        raise ServiceError(
            f"{image('step')}: no such image here; `make images`, or name one by VLMFLOW_STEP_IMAGE"
        ) from None
    except DockerException as error:
        raise ServiceError(
            f"no container engine at {os.environ.get('DOCKER_HOST', 'the default socket')}: {error}; start docker, or "
            "`podman system service --time 0` and set DOCKER_HOST=unix:///run/podman/podman.sock"
        ) from None
