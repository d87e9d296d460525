"""Run each step in a container on this machine, with kfp.local's DockerRunner: the same containers as on a cluster.

The engine is docker, or podman through its docker socket (DOCKER_HOST). A container can access the folder of runs and
the local paths in the recipe. Its root file system is read-only and its user is not root.
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
from vlmflow.runtime.container_image import image_name
from vlmflow.runtime.fingerprint import hash_named_files
from vlmflow.tracking import mlflow_store

PASSED_PREFIXES = ("VLMFLOW_", "MLFLOW_", "AWS_", "HF_", "TOKENIZERS_", "TRANSFORMERS_", "OMP_", "FSSPEC_")
IMAGE_USER = "1000:0"  # the user of our images; it can write files that root's group can write
MAX_LIMIT = 32768  # upper bound of open files and of processes
SHARED_MEMORY = "1g"  # data loader workers pass batches through it; the engine's default of 64 MB is too small


def runner(folder: Path, sections: dict[str, Any]) -> local.DockerRunner:
    """Return a runner that executes steps in containers.

    Args:
        folder: the run's folder.
        sections: the recipe; the local files and folders in it are mounted read-only at the same paths.

    Raises:
        ServiceError: the container engine does not answer or does not have the image.
    """
    from docker.types import Mount

    _check_engine()
    here = Path.cwd()
    mounted = {str((here / path).resolve()) for path in hash_named_files(sections)}
    if os.getuid() == 0:
        _allow_group_writes(folder)
    docker_task_handler.DockerTaskHandler = CheckedTaskHandler
    return local.DockerRunner(
        user=IMAGE_USER if os.getuid() == 0 else f"{os.getuid()}:{os.getgid()}",
        environment={
            **{name: value for name, value in os.environ.items() if name.startswith(PASSED_PREFIXES)},
            "VLMFLOW_STEP_IMAGE": image_name("step"),
        },
        mounts=[
            Mount(str(folder.parent), str(folder.parent), type="bind"),
            *(Mount(path, path, type="bind", read_only=True) for path in sorted(mounted)),
        ],
        working_dir=str(here if mounted else folder),
        network_mode="host",
        read_only=True,
        tmpfs={"/tmp": "exec,mode=1777"},
        cap_drop=["ALL"],
        security_opt=["no-new-privileges"],
        shm_size=SHARED_MEMORY,
        ulimits=[_limit("nofile", resource.RLIMIT_NOFILE), _limit("nproc", resource.RLIMIT_NPROC)],
    )


class CheckedTaskHandler(docker_task_handler.DockerTaskHandler):
    """Checks the step's output file, because kfp.local reports success if a failed container is removed at once."""

    def run(self) -> Status:
        """Run the container. Returns FAILURE unless the step has finished and written its output file."""
        self.image = image_name("step")  # the component has a placeholder, so that its import does not run git
        status = super().run()
        outputs = json.loads(self.full_command[self.full_command.index("--executor_input") + 1])["outputs"]
        return status if Path(outputs["outputFile"]).exists() else Status.FAILURE


def _allow_group_writes(folder: Path) -> None:
    """Let root's group write to the folder of runs, because the containers' user belongs to it."""
    os.umask(0o002)
    for path in (folder.parent, folder):
        path.chmod(0o775)
    if mlflow_store.enabled() and mlflow_store.uri().startswith("sqlite"):
        mlflow_store.client()
        for file in folder.parent.glob("mlflow.db*"):  # SQLite ignores the umask
            file.chmod(0o664)


def _limit(name: str, kind: int) -> Any:
    """Return this process's own limit, at most MAX_LIMIT: podman's service lowers its limits and cannot grant more."""
    from docker.types import Ulimit

    soft, hard = (
        MAX_LIMIT if value == resource.RLIM_INFINITY else min(value, MAX_LIMIT) for value in resource.getrlimit(kind)
    )
    return Ulimit(name=name, soft=soft, hard=hard)


def _check_engine() -> None:
    import docker
    from docker.errors import DockerException, ImageNotFound

    try:
        client = docker.from_env()
        client.images.get(image_name("step"))
    except ImageNotFound:
        raise ServiceError(
            f"{image_name('step')}: image not found; run `make images`, or set VLMFLOW_STEP_IMAGE to an existing one"
        ) from None
    except DockerException as error:
        engine = os.environ.get("DOCKER_HOST", "the default socket")
        raise ServiceError(
            f"no container engine answers at {engine}: {error}; start docker, or run "
            "`podman system service --time 0` and set DOCKER_HOST=unix:///run/podman/podman.sock"
        ) from None
