"""The errors of vlmflow, as a tree.

    VlmflowError
    ├── RecipeError       a recipe has an unknown key, a wrong type or an impossible value
    ├── DataError         the data is missing, empty or does not match its description
    ├── ModelError        a checkpoint or a model reference cannot be used
    ├── SpaceError        an artifact cannot be written: no space, or no permission
    ├── ServiceError      a service (MLflow, an endpoint, a port) fails or does not answer
    └── GateError         validation or the gate stopped the pipeline

Each of these is a mistake that the user can fix: the message is one line with the subject, the value and the remedy,
and the exit code is 2. Any other exception is a bug and keeps its traceback.
"""

EXIT_CODE = 2


class VlmflowError(Exception):
    """Base class of every error that a user can fix."""


class RecipeError(VlmflowError):
    """A recipe has an unknown key, a wrong type or an impossible value."""


class DataError(VlmflowError):
    """The data is missing, empty or does not match its description."""


class ModelError(VlmflowError):
    """A checkpoint or a model reference cannot be used."""


class SpaceError(VlmflowError):
    """An artifact cannot be written: no space, or no permission."""


class ServiceError(VlmflowError):
    """A service (MLflow, an endpoint, a port) fails or does not answer."""


class GateError(VlmflowError):
    """Validation or the gate stopped the pipeline."""


class RecordError(Exception):
    """A row, a region or a line of text cannot be used.

    Args:
        kind: the short reason, used for counts, such as `no such file`.
        detail: what is wrong with this record.
    """

    def __init__(self, kind: str, detail: str = ""):
        super().__init__(f"{kind}: {detail}" if detail else kind)
        self.kind = kind
        self.detail = detail
