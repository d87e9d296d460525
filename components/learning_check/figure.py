"""One picture of what a family does on held-out data: what it ranks, paints, fills in or finds alike, and looks at."""

import io
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import Rectangle

from vlmflow.artifacts.dataset import Dataset
from vlmflow.evaluation.suites import choose_hidden_word, content_words
from vlmflow.images.decoding import decode
from vlmflow.inference.loading import LoadedModel, load, similarity
from vlmflow.inference.masked import (
    attention_maps,
    fill_mask,
    image_features,
    prepare_inputs,
    random_patch_mask,
    reconstruct,
    to_image,
)

CANDIDATES = 200
ATTENTION_MAPS = 5  # words or phrases of a picture


def draw_figure(model: Path, pairs: Path, out: Path, count: int) -> None:
    """Write a PNG of `count` held-out examples, the first ones, whether they are right or not.

    Below what the family does stands what its texts look at, if its model has `attention_maps`.
    """
    loaded = load(model)
    columns = ["uid", "image", "caption", "regions", "split"]
    rows = [row for row in Dataset(pairs, "pairs").rows(columns) if row["split"] == "test"]
    captioned = [row for row in rows if row["caption"].strip()][:CANDIDATES]
    drawn: dict[str, Callable[..., Any]] = {
        "reconstruct": painted, "rank": ranked, "fill": filled, "represent": alike
    }  # fmt: skip
    panels = [next(function for ability, function in drawn.items() if ability in loaded.abilities)]
    if hasattr(loaded.model, "attention_maps"):
        panels.append(attention_rows)
    _stacked([panel(loaded, captioned, count) for panel in panels]).save(out, format="png")


def ranked(loaded: LoadedModel, rows: list[dict[str, Any]], count: int) -> Any:
    """Each picture with the captions that are ranked first; its own is green."""
    images, captions = [_image(row) for row in rows], [row["caption"] for row in rows]
    order = np.argsort(-similarity(loaded, images[:count], captions), axis=1)[:, :3]
    texts = [
        [(captions[j], "tab:green" if captions[j] == captions[i] else "black") for j in order[i]] for i in range(count)
    ]
    return _listed(images[:count], texts)


def filled(loaded: LoadedModel, rows: list[dict[str, Any]], count: int) -> Any:
    """Each caption with a word hidden, and the word that is put there; the right one is green."""
    mask, images, texts = loaded.tokenizer.mask_token, [], []
    for row in rows:
        if (word := choose_hidden_word(row, 0)) is None or len(images) == count:
            continue
        words = row["caption"].split()
        hidden = " ".join([*words[:word], mask, *words[word + 1 :]])
        try:
            ((answer, *_),) = fill_mask(loaded, [_image(row)], [hidden])
        except ValueError:  # the word lies beyond what the model reads
            continue
        colour = "tab:green" if answer == words[word] else "tab:red"
        images.append(_image(row))
        texts.append([(hidden.replace(mask, "____"), "black"), (answer, colour)])
    return _listed(images, texts)


def painted(loaded: LoadedModel, rows: list[dict[str, Any]], count: int) -> Any:
    """What the model sees of each picture, what it paints, and the picture."""
    images = [_image(row) for row in rows[:count]]
    hidden = random_patch_mask(loaded, count, 0)
    found = reconstruct(loaded, images, [row["caption"] for row in rows[:count]], hidden)
    truth = prepare_inputs(loaded, images, None)["pixel_values"].cpu()
    side = round(hidden.shape[1] ** 0.5)
    patch = truth.shape[-1] // side
    where = hidden.view(count, 1, side, side).repeat_interleave(patch, 2).repeat_interleave(patch, 3)
    lines = {"seen": truth.masked_fill(where, 0.0), "painted": found, "picture": truth}
    figure, axes = plt.subplots(3, count, figsize=(1.3 * count, 4), squeeze=False)
    for row, (name, tensors) in zip(axes, lines.items(), strict=True):
        for axis, tensor in zip(row, tensors, strict=True):
            axis.imshow(to_image(loaded, tensor))
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(name)
    return figure


def alike(loaded: LoadedModel, rows: list[dict[str, Any]], count: int) -> Any:
    """Each picture, and those whose vectors are nearest to its own."""
    images = [_image(row) for row in rows]
    vectors = image_features(loaded, images)
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


def attention_rows(loaded: LoadedModel, rows: list[dict[str, Any]], count: int) -> Any:
    """Each picture, and what its words or phrases look at: the rest is dark. Frames are around what they name."""
    rows = [row for row in rows if content_words(row["caption"])][:count]
    figure, axes = plt.subplots(len(rows), 1 + ATTENTION_MAPS, figsize=(6.5, 1.25 * len(rows)), squeeze=False)
    for row, (left, *others) in zip(rows, axes, strict=True):
        image = _image(row)
        left.imshow(image)
        left.set(xticks=[], yticks=[])
        for axis, text_and_map in zip_longest(others, _looks(loaded, image, row)):
            axis.axis("off")
            if text_and_map is not None:
                text, looked = text_and_map
                _light(axis, image, text, looked, row["regions"] or [])
    return figure


def _looks(loaded: LoadedModel, image: Image.Image, row: dict[str, Any]) -> list[tuple[str, np.ndarray]]:
    """Texts, and where each looks: words that are hidden one by one, or phrases where a model fills in nothing."""
    caption, places = row["caption"], content_words(row["caption"])[:ATTENTION_MAPS]
    words = [caption.split()[place].strip(",.") for place in places]
    if "fill" in loaded.abilities:
        return list(
            zip(words, attention_maps(loaded, [image] * len(words), [caption] * len(words), places), strict=True)
        )
    phrases = [region["phrase"] for region in row["regions"] or []][:ATTENTION_MAPS] or words
    return list(zip(phrases, attention_maps(loaded, [image] * len(phrases), phrases), strict=True))


def _light(axis: Any, image: Image.Image, text: str, map: np.ndarray, regions: list[dict[str, Any]]) -> None:
    """The picture as dark as `text` does not look, and a frame around each region whose phrase has all its words."""
    axis.set_title(_printable(text), fontsize=8, pad=2)
    axis.imshow(image)
    extent = (-0.5, image.width - 0.5, image.height - 0.5, -0.5)
    axis.imshow(np.zeros_like(map), cmap="gray", alpha=0.85 * (1 - map / max(map.max(), 1e-9)), extent=extent)
    for region in regions:
        if set(text.split()) <= set(region["phrase"].split()):
            x0, y0, x1, y1 = (region[side] for side in ("x0", "y0", "x1", "y1"))
            axis.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor="white"))


def _stacked(figures: list[Any]) -> Image.Image:
    """Figures below each other."""
    parts = []
    for figure in figures:
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=100, bbox_inches="tight")
        plt.close(figure)
        parts.append(Image.open(buffer).convert("RGB"))
    page = Image.new("RGB", (max(part.width for part in parts), sum(part.height for part in parts)), "white")
    for i, part in enumerate(parts):
        page.paste(part, (0, sum(above.height for above in parts[:i])))
    return page


def _listed(images: list[Image.Image], texts: list[list[tuple[str, str]]]) -> Any:
    """Pictures below each other, and lines of coloured text beside each."""
    figure, axes = plt.subplots(len(images), 2, figsize=(6.5, 1.1 * len(images)), width_ratios=[1, 5], squeeze=False)
    for (left, right), image, lines in zip(axes, images, texts, strict=True):
        left.imshow(image)
        left.set(xticks=[], yticks=[])
        right.axis("off")
        for i, (text, colour) in enumerate(lines):
            right.text(0, 0.82 - 0.32 * i, _printable(text), color=colour, fontsize=9, va="center")
    return figure


def _printable(text: str) -> str:
    """Blanks for what a tokenizer of bytes may make up, and no font has."""
    return "".join(sign if sign.isprintable() else " " for sign in text)


def _image(row: dict[str, Any]) -> Image.Image:
    return decode(row["image"]["bytes"])
