"""Find the checkpoint folder that a model reference means."""

from pathlib import Path

from vlmflow.errors import ModelError

# Where a checkpoint may lie below the folder that is given.
_SUBFOLDERS = (
    "artifacts/model",  # a registered version, as MLflow and KServe's storage initializer download it
    "model",
    "gate/chosen",  # a run
)


def resolve(reference: str | Path) -> Path:
    """Return the checkpoint folder that `reference` means.

    Args:
        reference: the folder of a checkpoint, a run or a registered version, or a registry URI: `models:/vlm@champion`,
            `models:/vlm/3`.

    Raises:
        ModelError: there is no checkpoint; the message lists those below the folder.
    """
    text = str(reference)
    if text.startswith("models:/"):
        from vlmflow.tracking.registry import download

        return download(text) / "model"
    folder = Path(text)
    if not folder.is_dir():
        raise ModelError(
            f"{text}: no such folder; give a checkpoint, a run (runs/latest) or a registered model "
            "(models:/vlm@champion)"
        )
    for subfolder in (".", *_SUBFOLDERS):
        if (folder / subfolder / "config.json").is_file():
            return folder / subfolder
    checkpoints = sorted(str(path.parent.relative_to(folder)) for path in folder.glob("*/*/config.json"))
    below = f"checkpoints below it: {', '.join(checkpoints)}" if checkpoints else "no checkpoints below it either"
    raise ModelError(f"{text}: not a checkpoint (config.json is missing); {below}")
