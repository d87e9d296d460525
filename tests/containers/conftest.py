"""Build the image of the steps from a local base image, and run it with podman: no image registry is used.

These tests are slow and run only with `make test-containers`. They need root, podman and debootstrap (`apt-get install
podman buildah runc netavark debootstrap`) and are skipped otherwise. To work on the tests themselves, set
VLMFLOW_TEST_IMAGE to an image that is already built.
"""

import os
import shutil
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vlmflow.runtime.code_hash import ROOT
from vlmflow.runtime.container_image import image_name

# Files that pip uses on this machine: its settings, certificates, and wheel folders that the settings may name.
PIP = (
    "/etc/pip.conf",
    "/etc/xdg/pip",
    "/etc/ssl/certs",
    "/usr/share/ca-certificates",
    "/opt/wheels",
    "/opt/pypi",
    "/opt/pypi-more",
)
BASE = "localhost/python:3.11-slim"
LIMITS = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000"]


def podman(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(["podman", "--runtime", "runc", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 or not check, f"podman {arguments[0]}: {done.stderr[-3000:]}"
    return done


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run podman's docker socket. Yields the value for DOCKER_HOST."""
    if os.getuid() or not shutil.which("podman") or not shutil.which("debootstrap"):
        pytest.skip("containers need root, podman and debootstrap")
    socket = tmp_path_factory.mktemp("podman") / "socket"
    command = ["podman", "--runtime", "runc", "system", "service", "--time", "0", f"unix://{socket}"]
    service = subprocess.Popen(command)
    deadline = time.monotonic() + 30
    while not socket.exists():
        assert service.poll() is None and time.monotonic() < deadline, "podman's service did not start"
        time.sleep(0.1)
    yield f"unix://{socket}"
    service.terminate()
    service.wait()


@pytest.fixture(scope="session")
def built(engine: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Build the images with `make images`. Returns the name of the image `step`."""
    if given := os.environ.get("VLMFLOW_TEST_IMAGE"):
        return given
    name = image_name("step")
    if podman("image", "exists", name, check=False).returncode == 0:
        return name
    if podman("image", "exists", BASE, check=False).returncode:
        _make_base(tmp_path_factory.mktemp("base"))
    mounts = [f"--volume {path}:{path}:ro" for path in PIP if Path(path).exists()]
    settings = [f"--env {key}={value}" for key, value in os.environ.items() if key.startswith("PIP_")]
    flags = " ".join(["--isolation=chroot --network host", *mounts, *settings])
    options = [
        f"BUILD_FLAGS={flags} --build-arg BASE={BASE}",
        "ENGINE=podman --runtime runc",
        "TARGETS=step serve",
        "CPU_INDEX=",  # the torch wheel from pip's default index
    ]
    done = subprocess.run(["make", "images", *options], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return name


def _make_base(folder: Path) -> None:
    subprocess.run(
        ["debootstrap", "--variant=minbase", "--include=python3,python3-venv", "bookworm", str(folder / "root")],
        check=True, capture_output=True,
    )  # fmt: skip
    with tarfile.open(folder / "base.tar", "w") as archive:
        archive.add(folder / "root", arcname=".")
    podman("import", str(folder / "base.tar"), BASE)
