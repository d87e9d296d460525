"""What can go wrong, as a tree.

    VlmflowError
    ├── RecipeError       a recipe names an unknown key, a wrong type or an impossible value
    ├── DataError         the data is missing, empty or not what its mapping says
    ├── ModelError        a checkpoint or a model reference cannot be used
    ├── SpaceError        there is no room, or no right, to write an artifact
    ├── ServiceError      a service (MLflow, an endpoint, a port) does not answer as it should
    └── GateError         validation or the gate refused to go on

Each of them is a mistake that its reader can mend: one line that names the thing, the value and the
remedy, and exit code 2. Anything else is a bug and keeps its traceback.
"""

EXIT_CODE = 2


class VlmflowError(Exception):
    """Base of every error that a user can mend."""


class RecipeError(VlmflowError):
    """A recipe names an unknown key, a wrong type or an impossible value."""


class DataError(VlmflowError):
    """The data is missing, empty or not what its mapping says."""


class ModelError(VlmflowError):
    """A checkpoint or a model reference cannot be used."""


class SpaceError(VlmflowError):
    """There is no room, or no right, to write an artifact."""


class ServiceError(VlmflowError):
    """A service (MLflow, an endpoint, a port) does not answer as it should."""


class GateError(VlmflowError):
    """Validation or the gate refused to go on."""


class RecordError(Exception):
    """A row, a region or a line of text cannot be used.

    Args:
        kind: the short reason that is counted, such as `no such file`.
        detail: what is wrong with this one.
    """

    def __init__(self, kind: str, detail: str = ""):
        super().__init__(f"{kind}: {detail}" if detail else kind)
        self.kind = kind
        self.detail = detail
