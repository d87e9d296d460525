"""The producer of an artifact, for its card: the KFP run, the container image and the code revision.

Separate from `provenance`, which reads datasets and checkpoints, so that both can import this module.
"""

import os

_VARIABLES = {"kfp_run": "VLMFLOW_KFP_RUN", "image": "VLMFLOW_IMAGE", "code": "VLMFLOW_REVISION"}


def producer() -> dict[str, str]:
    """Return the KFP run, the image and the code revision in a pod of a cluster; elsewhere an empty mapping.

    On one machine the same content always gets the same card, so that no step runs again only because its input has
    another producer. The step's record contains the rest.
    """
    values = {name: os.environ.get(variable, "") for name, variable in _VARIABLES.items()}
    return {name: value for name, value in values.items() if value} if values["kfp_run"] else {}
