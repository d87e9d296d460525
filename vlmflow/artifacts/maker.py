"""Who made an artifact, for its card: what a pod of a cluster knows of itself."""

import os

_MADE = {"kfp_run": "VLMFLOW_KFP_RUN", "image": "VLMFLOW_IMAGE", "code": "VLMFLOW_REVISION"}


def made() -> dict[str, str]:
    """KFP's run, the image and the code's revision in a pod of a cluster; elsewhere nothing.

    On one machine the same content has the same card whoever made it, so that no step runs again for a name; there
    the step's record says the rest.
    """
    found = {name: os.environ.get(variable, "") for name, variable in _MADE.items()}
    return {name: value for name, value in found.items() if value} if found["kfp_run"] else {}
