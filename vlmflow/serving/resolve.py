"""From what a person types for a model to the checkpoint's folder."""

from pathlib import Path

from vlmflow.errors import ModelError

_PLACES = (
    "artifacts/model",  # a registered version, as MLflow and KServe's storage initializer bring it
    "model",
    "gate/chosen",  # a run
)


def resolve(reference: str | Path) -> Path:
    """The checkpoint that `reference` means.

    Args:
        reference: a checkpoint's folder, a run's folder, a registered version's folder, or `models:/vlm@champion`,
            `models:/vlm/3`.

    Raises:
        ModelError: there is none; the message lists those that are.
    """
    text = str(reference)
    if text.startswith("models:/"):
        from vlmflow.tracking.registry import download

        return download(text) / "model"
    folder = Path(text)
    if not folder.is_dir():
        raise ModelError(
            f"{text}: no such folder; name a checkpoint, a run (runs/latest) or a registered model "
            "(models:/vlm@champion)"
        )
    for place in (".", *_PLACES):
        if (folder / place / "config.json").is_file():
            return folder / place
    found = sorted(str(path.parent.relative_to(folder)) for path in folder.glob("*/*/config.json"))
    raise ModelError(f"{text}: no checkpoint here; below it: {', '.join(found) or 'none either'}")
