"""The capabilities of masked and fusion models, one function each, with the interface of `capabilities.py`."""

from collections.abc import Sequence

import numpy as np
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from vlmflow.evaluation.capabilities import Images, Result, macro_accuracy, mean
from vlmflow.inference.loading import LoadedModel
from vlmflow.inference.masked import (
    image_features,
    image_text_matching,
    prepare_inputs,
    random_patch_mask,
    reconstruct,
    words_recovered,
)
from vlmflow.training.collators import PairCollator

NEIGHBOURS = 20


def matching_accuracy(loaded: LoadedModel, images: Images, items: Sequence[tuple[str, str]]) -> Result:
    """Share of images whose own caption scores strictly higher than another one; 0.5 by chance."""
    own = image_text_matching(loaded, images, [caption for caption, _ in items])
    other = image_text_matching(loaded, images, [wrong for _, wrong in items])
    return mean("own caption preferred", own > other)


def fill_mask_accuracy(loaded: LoadedModel, images: Images, items: Sequence[tuple[str, int]]) -> Result:
    """Share of hidden words of which all tokens are predicted correctly."""
    correct = words_recovered(loaded, images, [caption for caption, _ in items], [word for _, word in items])
    return mean("hidden word found", correct, needs_image=False)


def reconstruction(loaded: LoadedModel, images: Images, items: Sequence[tuple[Image.Image, str]], seed: int) -> Result:
    """Explained variance of the hidden patches, relative to predicting the mean colour of the visible patches.

    1 − Σ error² / Σ (error of that mean)²: 0 for a model that predicts the mean colour, below 0 for a worse one. The
    model's input are the visible patches of `images`; the images in `items` are the ground truth.
    """
    hidden = random_patch_mask(loaded, len(items), seed)
    predicted = reconstruct(loaded, images, [caption for _, caption in items], hidden)
    truth = prepare_inputs(loaded, [image for image, _ in items], None)["pixel_values"].cpu()
    patch = loaded.model.config.patch_size
    side = truth.shape[-1] // patch
    mask = hidden.view(len(items), 1, side, side).repeat_interleave(patch, 2).repeat_interleave(patch, 3).float()
    visible_mean = ((truth * (1 - mask)).sum((2, 3)) / (1 - mask).sum((2, 3)))[..., None, None]
    error = ((predicted - truth).square() * mask).sum((1, 2, 3)).double().numpy()
    baseline = ((visible_mean - truth).square() * mask).sum((1, 2, 3)).double().numpy()
    weight = np.maximum(baseline, 1e-6)  # 0 for an image of one colour
    return Result("variance of hidden patches", baseline - error, weight)


class Probe:
    """A linear probe and a nearest-neighbour classifier on frozen image features, fitted once.

    Args:
        images, labels: the training examples of both classifiers.
    """

    def __init__(self, loaded: LoadedModel, images: Images, labels: Sequence[str]):
        vectors = image_features(loaded, images)
        self.linear = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000)).fit(vectors, labels)
        neighbours = KNeighborsClassifier(min(NEIGHBOURS, len(labels)), weights="distance", metric="cosine")
        self.nearest = neighbours.fit(vectors, labels)

    def __call__(self, loaded: LoadedModel, images: Images, labels: Sequence[str]) -> dict[str, Result]:
        """Top-1 accuracy of both classifiers."""
        vectors, true = image_features(loaded, images), np.array(labels)
        metric = f"top-1 of {len(self.linear.classes_)} classes"
        found = {"linear probe": self.linear, "nearest neighbours": self.nearest}
        hits = {name: classifier.predict(vectors) == true for name, classifier in found.items()}
        return {
            name: mean(metric, right, secondary={"macro accuracy": macro_accuracy(right, labels)})
            for name, right in hits.items()
        }


def held_out_loss(loaded: LoadedModel, images: Images, captions: Sequence[str], batch_size: int, seed: int) -> Result:
    """The family's training objective, one example per batch.

    A last, smaller batch is omitted because contrastive losses depend on the batch size.
    """
    import torch

    collate = PairCollator(loaded.model, loaded.processor)
    rows = collate.make_rows(images, captions)
    torch.manual_seed(seed)  # the model's forward draws masks at random
    losses = []
    with torch.no_grad():
        for start in range(0, max(1, len(rows) - batch_size + 1), batch_size):
            inputs = collate(rows[start : start + batch_size])
            inputs = {name: tensor.to(loaded.model.device) for name, tensor in inputs.items()}
            losses.append(float(loaded.model(**inputs).loss))
    return Result("loss", np.array(losses), np.ones(len(losses)), higher_is_better=False, needs_image=False)
