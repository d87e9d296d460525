"""What masked and fused families can do, one function a capability, on the same terms as `capabilities.py`."""

from collections.abc import Sequence

import numpy as np
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from vlmflow.evaluation.capabilities import Images, Result, mean
from vlmflow.inference.loading import Loaded
from vlmflow.inference.masked import batch, hide, match, reconstruct, recovered, represent
from vlmflow.training.collators import Batches

NEIGHBOURS = 20


def image_text_matching(loaded: Loaded, pictures: Images, items: Sequence[tuple[str, str]]) -> Result:
    """Share of pictures that fit their own caption better than another's, strictly; half of them by chance."""
    own = match(loaded, pictures, [caption for caption, _ in items])
    other = match(loaded, pictures, [wrong for _, wrong in items])
    return mean("own caption preferred", own > other)


def fill_mask(loaded: Loaded, pictures: Images, items: Sequence[tuple[str, int]]) -> Result:
    """Share of hidden words that are found again, all their tokens."""
    right = recovered(loaded, pictures, [caption for caption, _ in items], [word for _, word in items])
    return mean("hidden word found", right)


def reconstruction(loaded: Loaded, pictures: Images, items: Sequence[tuple[Image.Image, str]], seed: int) -> Result:
    """Share of the hidden patches' variance that is painted, against the mean colour of the patches that are seen.

    1 − Σ error² / Σ (error of the mean)²: 0 for a model that paints that colour, and below 0 for a worse one. The
    model sees the visible patches of `pictures`; the items' pictures are the truth.
    """
    hidden = hide(loaded, len(items), seed)
    painted = reconstruct(loaded, pictures, [caption for _, caption in items], hidden)
    truth = batch(loaded, [picture for picture, _ in items], None)["pixel_values"].cpu()
    patch = loaded.model.config.patch_size
    side = truth.shape[-1] // patch
    where = hidden.view(len(items), 1, side, side).repeat_interleave(patch, 2).repeat_interleave(patch, 3).float()
    shown = ((truth * (1 - where)).sum((2, 3)) / (1 - where).sum((2, 3)))[..., None, None]
    error = ((painted - truth).square() * where).sum((1, 2, 3)).double().numpy()
    baseline = ((shown - truth).square() * where).sum((1, 2, 3)).double().numpy()
    weight = np.maximum(baseline, 1e-6)  # a picture of one colour leaves nothing to paint
    return Result("variance of hidden patches", baseline - error, weight)


class Probe:
    """A linear probe and nearest neighbours on frozen vectors, learned once and asked about any pictures.

    Args:
        pictures, labels: what the probe learns from.
    """

    def __init__(self, loaded: Loaded, pictures: Images, labels: Sequence[str]):
        vectors = represent(loaded, pictures)
        self.linear = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000)).fit(vectors, labels)
        neighbours = KNeighborsClassifier(min(NEIGHBOURS, len(labels)), weights="distance", metric="cosine")
        self.nearest = neighbours.fit(vectors, labels)

    def __call__(self, loaded: Loaded, pictures: Images, labels: Sequence[str]) -> dict[str, Result]:
        """Top-1 accuracy of both."""
        vectors, true = represent(loaded, pictures), np.array(labels)
        count = len(self.linear.classes_)
        return {
            "linear probe": mean(f"top-1 of {count} classes", self.linear.predict(vectors) == true),
            "nearest neighbours": mean(f"top-1 of {count} classes", self.nearest.predict(vectors) == true),
        }


def held_out_loss(loaded: Loaded, pictures: Images, captions: Sequence[str], batch_size: int, seed: int) -> Result:
    """The family's own objective, an example a batch; a last short batch is left out: it would be another task."""
    import torch

    collate = Batches(loaded.model, loaded.processor)
    rows = collate.rows(pictures, captions)
    torch.manual_seed(seed)  # what is hidden is drawn in the model's forward
    losses = []
    with torch.no_grad():
        for start in range(0, max(1, len(rows) - batch_size + 1), batch_size):
            given = collate(rows[start : start + batch_size])
            given = {name: tensor.to(loaded.model.device) for name, tensor in given.items()}
            losses.append(float(loaded.model(**given).loss))
    return Result("loss", np.array(losses), np.ones(len(losses)), higher_is_better=False)
