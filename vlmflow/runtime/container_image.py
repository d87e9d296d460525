"""The names of our container images, which contain the revision of the code.

python -m vlmflow.runtime.container_image revision
python -m vlmflow.runtime.container_image image step
"""

import hashlib
import os
import subprocess
import sys
from functools import cache

from vlmflow.runtime.code_hash import LAYERS, ROOT


@cache
def revision() -> str:
    """Return the git revision of the code, with a hash of the uncommitted changes; `unversioned` outside a checkout.

    An image contains no repository; there VLMFLOW_REVISION is set to the revision that it was built from.
    """
    if value := os.environ.get("VLMFLOW_REVISION"):
        return value
    head = _git("rev-parse", "--short=12", "HEAD").strip()
    changes = _git("diff", "HEAD", "--", *LAYERS, "requirements.lock") if head else ""
    return f"{head}-{hashlib.sha256(changes.encode()).hexdigest()[:8]}" if changes else head or "unversioned"


def _git(*arguments: str) -> str:
    """Return git's output; empty without git or without a repository."""
    try:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True).stdout
    except FileNotFoundError:
        return ""


def image_name(target: str) -> str:
    """Return the name of one of our images. It contains the revision: with a moving tag, KFP's cache would be wrong.

    VLMFLOW_STEP_IMAGE, VLMFLOW_TRAIN_IMAGE and VLMFLOW_SERVE_IMAGE override the whole name, preferably with a digest;
    VLMFLOW_REGISTRY is the registry of all of them.

    Args:
        target: `step`, `train` or `serve`, as in infra/images/Containerfile.
    """
    registry = os.environ.get("VLMFLOW_REGISTRY", "localhost")
    return os.environ.get(f"VLMFLOW_{target.upper()}_IMAGE") or f"{registry}/vlmflow-{target}:{revision()}"


if __name__ == "__main__":
    print(revision() if sys.argv[1] == "revision" else image_name(sys.argv[2]))  # noqa: T201  the command's output
