"""One picture of what a family does on held-out data: what it ranks, paints, fills in or finds alike."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from components.completion import batch, fill, hide, picture, reconstruct, represent
from components.dataset import Dataset
from components.evaluate.suites import hidden_word
from components.inference import Loaded, load, similarity
from components.pixels import decode

CANDIDATES = 200


def draw(model: Path, pairs: Path, out: Path, count: int) -> None:
    """Write a PNG of `count` held-out examples, the first ones, whether they are right or not."""
    loaded = load(model)
    rows = [
        r for r in Dataset(pairs, "pairs").rows(["uid", "image", "caption", "label", "split"]) if r["split"] == "test"
    ]
    captioned = [row for row in rows if row["caption"].strip()][:CANDIDATES]
    drawn: dict[str, Callable[..., Any]] = {
        "reconstruct": painted, "rank": ranked, "fill": filled, "represent": alike
    }  # fmt: skip
    figure = next(function for ability, function in drawn.items() if ability in loaded.abilities)(
        loaded, captioned, count
    )
    figure.savefig(out, format="png", dpi=100, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)


def ranked(loaded: Loaded, rows: list[dict[str, Any]], count: int) -> Any:
    """Each picture with the captions that are ranked first; its own is green."""
    images, captions = [_image(row) for row in rows], [row["caption"] for row in rows]
    order = np.argsort(-similarity(loaded, images[:count], captions), axis=1)[:, :3]
    texts = [
        [(captions[j], "tab:green" if captions[j] == captions[i] else "black") for j in order[i]] for i in range(count)
    ]
    return _listed(images[:count], texts)


def filled(loaded: Loaded, rows: list[dict[str, Any]], count: int) -> Any:
    """Each caption with a word hidden, and the word that is put there; the right one is green."""
    told = [(row, word) for row in rows if (word := hidden_word(row, 0)) is not None][:count]
    mask, texts = loaded.tokenizer.mask_token, []
    for row, word in told:
        words = row["caption"].split()
        hidden = " ".join([*words[:word], mask, *words[word + 1 :]])
        ((answer, *_),) = fill(loaded, [_image(row)], [hidden])
        colour = "tab:green" if answer == words[word] else "tab:red"
        texts.append([(hidden.replace(mask, "____"), "black"), (answer, colour)])
    return _listed([_image(row) for row, _ in told], texts)


def painted(loaded: Loaded, rows: list[dict[str, Any]], count: int) -> Any:
    """What the model sees of each picture, what it paints, and the picture."""
    images = [_image(row) for row in rows[:count]]
    hidden = hide(loaded, count, 0)
    found = reconstruct(loaded, images, [row["caption"] for row in rows[:count]], hidden)
    truth = batch(loaded, images, None)["pixel_values"].cpu()
    side = round(hidden.shape[1] ** 0.5)
    patch = truth.shape[-1] // side
    where = hidden.view(count, 1, side, side).repeat_interleave(patch, 2).repeat_interleave(patch, 3)
    lines = {"seen": truth.masked_fill(where, 0.0), "painted": found, "picture": truth}
    figure, axes = plt.subplots(3, count, figsize=(1.3 * count, 4), squeeze=False)
    for row, (name, tensors) in zip(axes, lines.items(), strict=True):
        for axis, tensor in zip(row, tensors, strict=True):
            axis.imshow(picture(loaded, tensor))
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(name)
    return figure


def alike(loaded: Loaded, rows: list[dict[str, Any]], count: int) -> Any:
    """Each picture, and those whose vectors are nearest to its own."""
    images = [_image(row) for row in rows]
    vectors = represent(loaded, images)
    vectors = (vectors - vectors.mean(0)) / (vectors.std(0) + 1e-6)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    order = np.argsort(-vectors[:count] @ vectors.T, axis=1)[:, :6]
    figure, axes = plt.subplots(count, 6, figsize=(6.5, 1.1 * count), squeeze=False)
    for row, nearest in zip(axes, order, strict=True):
        for axis, place in zip(row, nearest, strict=True):
            axis.imshow(images[place])
            axis.set(xticks=[], yticks=[])
    axes[0, 0].set_title("picture", fontsize=9)
    axes[0, 1].set_title("nearest …", fontsize=9)
    return figure


def _listed(images: list[Image.Image], texts: list[list[tuple[str, str]]]) -> Any:
    """Pictures below each other, and lines of coloured text beside each."""
    figure, axes = plt.subplots(len(images), 2, figsize=(6.5, 1.1 * len(images)), width_ratios=[1, 5], squeeze=False)
    for (left, right), image, lines in zip(axes, images, texts, strict=True):
        left.imshow(image)
        left.set(xticks=[], yticks=[])
        right.axis("off")
        for i, (text, colour) in enumerate(lines):
            right.text(0, 0.82 - 0.32 * i, text, color=colour, fontsize=9, va="center")
    return figure


def _image(row: dict[str, Any]) -> Image.Image:
    return decode(row["image"]["bytes"])
