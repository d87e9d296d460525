"""A figure of a family's output on held-out data: retrieval, reconstruction, fill-mask or neighbours, and attention."""

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
from vlmflow.inference.embedding import similarity
from vlmflow.inference.loading import LoadedModel, load
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
ATTENTION_MAPS = 5  # words or phrases of an image


def draw_figure(model: Path, pairs: Path, out: Path, count: int) -> None:
    """Write a PNG of the first `count` held-out examples.

    If the model has `attention_maps`, a second panel shows which patches the words or phrases attend to.
    """
    loaded = load(model)
    columns = ["uid", "image", "caption", "regions", "split"]
    rows = [row for row in Dataset(pairs, "pairs").rows(columns) if row["split"] == "test"]
    captioned = [row for row in rows if row["caption"].strip()][:CANDIDATES]
    panel_by_ability: dict[str, Callable[..., Any]] = {
        "reconstruct": reconstruction_rows,
        "retrieval": retrieval_rows,
        "fill_mask": fill_mask_rows,
        "features": neighbour_rows,
    }
    panels = [next(function for ability, function in panel_by_ability.items() if ability in loaded.abilities)]
    if hasattr(loaded.model, "attention_maps"):
        panels.append(attention_rows)
    _stack_figures([panel(loaded, captioned, count) for panel in panels]).save(out, format="png")


def retrieval_rows(loaded: LoadedModel, rows: list[dict[str, Any]], count: int) -> Any:
    """Each image with the three best-ranked captions; its own caption is green."""
    images, captions = [_image(row) for row in rows], [row["caption"] for row in rows]
    order = np.argsort(-similarity(loaded, images[:count], captions), axis=1)[:, :3]
    texts = [
        [(captions[j], "tab:green" if captions[j] == captions[i] else "black") for j in order[i]] for i in range(count)
    ]
    return _text_rows(images[:count], texts)


def fill_mask_rows(loaded: LoadedModel, rows: list[dict[str, Any]], count: int) -> Any:
    """Each caption with a masked word and the prediction: green if correct, otherwise red."""
    mask, images, texts = loaded.tokenizer.mask_token, [], []
    for row in rows:
        if (word := choose_hidden_word(row, 0)) is None or len(images) == count:
            continue
        words = row["caption"].split()
        hidden = " ".join([*words[:word], mask, *words[word + 1 :]])
        try:
            ((answer, *_),) = fill_mask(loaded, [_image(row)], [hidden])
        except ValueError:  # the word lies beyond the model's maximum text length
            continue
        colour = "tab:green" if answer == words[word] else "tab:red"
        images.append(_image(row))
        texts.append([(hidden.replace(mask, "____"), "black"), (answer, colour)])
    return _text_rows(images, texts)


def reconstruction_rows(loaded: LoadedModel, rows: list[dict[str, Any]], count: int) -> Any:
    """The visible patches of each image, the reconstruction and the image itself."""
    images = [_image(row) for row in rows[:count]]
    hidden = random_patch_mask(loaded, count, 0)
    reconstructed = reconstruct(loaded, images, [row["caption"] for row in rows[:count]], hidden)
    truth = prepare_inputs(loaded, images, None)["pixel_values"].cpu()
    side = round(hidden.shape[1] ** 0.5)
    patch = truth.shape[-1] // side
    mask = hidden.view(count, 1, side, side).repeat_interleave(patch, 2).repeat_interleave(patch, 3)
    lines = {"visible": truth.masked_fill(mask, 0.0), "reconstructed": reconstructed, "image": truth}
    figure, axes = plt.subplots(3, count, figsize=(1.3 * count, 4), squeeze=False)
    for row, (name, tensors) in zip(axes, lines.items(), strict=True):
        for axis, tensor in zip(row, tensors, strict=True):
            axis.imshow(to_image(loaded, tensor))
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(name)
    return figure


def neighbour_rows(loaded: LoadedModel, rows: list[dict[str, Any]], count: int) -> Any:
    """Each image and its five nearest neighbours by image features."""
    images = [_image(row) for row in rows]
    vectors = image_features(loaded, images)
    vectors = (vectors - vectors.mean(0)) / (vectors.std(0) + 1e-6)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    order = np.argsort(-vectors[:count] @ vectors.T, axis=1)[:, :6]
    figure, axes = plt.subplots(count, 6, figsize=(6.5, 1.1 * count), squeeze=False)
    for row, nearest in zip(axes, order, strict=True):
        for axis, index in zip(row, nearest, strict=True):
            axis.imshow(images[index])
            axis.set(xticks=[], yticks=[])
    axes[0, 0].set_title("image", fontsize=9)
    axes[0, 1].set_title("nearest neighbours", fontsize=9)
    return figure


def attention_rows(loaded: LoadedModel, rows: list[dict[str, Any]], count: int) -> Any:
    """Each image with the attention of its words or phrases; patches without attention are dark.

    White frames mark the regions that the text names.
    """
    rows = [row for row in rows if content_words(row["caption"])][:count]
    figure, axes = plt.subplots(len(rows), 1 + ATTENTION_MAPS, figsize=(6.5, 1.25 * len(rows)), squeeze=False)
    for row, (left, *others) in zip(rows, axes, strict=True):
        image = _image(row)
        left.imshow(image)
        left.set(xticks=[], yticks=[])
        for axis, text_and_map in zip_longest(others, _attention_samples(loaded, image, row)):
            axis.axis("off")
            if text_and_map is not None:
                text, attention = text_and_map
                _overlay_attention(axis, image, text, attention, row["regions"] or [])
    return figure


def _attention_samples(loaded: LoadedModel, image: Image.Image, row: dict[str, Any]) -> list[tuple[str, np.ndarray]]:
    """Texts and their attention maps: words masked one by one, or phrases if the model cannot fill masks."""
    caption, indices = row["caption"], content_words(row["caption"])[:ATTENTION_MAPS]
    words = [caption.split()[index].strip(",.") for index in indices]
    if "fill_mask" in loaded.abilities:
        return list(
            zip(words, attention_maps(loaded, [image] * len(words), [caption] * len(words), indices), strict=True)
        )
    phrases = [region["phrase"] for region in row["regions"] or []][:ATTENTION_MAPS] or words
    return list(zip(phrases, attention_maps(loaded, [image] * len(phrases), phrases), strict=True))


def _overlay_attention(
    axis: Any, image: Image.Image, text: str, attention: np.ndarray, regions: list[dict[str, Any]]
) -> None:
    """Darken the image where `text` does not attend; frame each region whose phrase contains all words of `text`."""
    axis.set_title(_printable(text), fontsize=8, pad=2)
    axis.imshow(image)
    extent = (-0.5, image.width - 0.5, image.height - 0.5, -0.5)
    axis.imshow(
        np.zeros_like(attention), cmap="gray", alpha=0.85 * (1 - attention / max(attention.max(), 1e-9)), extent=extent
    )
    for region in regions:
        if set(text.split()) <= set(region["phrase"].split()):
            x0, y0, x1, y1 = (region[side] for side in ("x0", "y0", "x1", "y1"))
            axis.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor="white"))


def _stack_figures(figures: list[Any]) -> Image.Image:
    """Stack figures vertically."""
    parts = []
    for figure in figures:
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=100, bbox_inches="tight")
        plt.close(figure)
        parts.append(decode(buffer.getvalue()))
    page = Image.new("RGB", (max(part.width for part in parts), sum(part.height for part in parts)), "white")
    for i, part in enumerate(parts):
        page.paste(part, (0, sum(above.height for above in parts[:i])))
    return page


def _text_rows(images: list[Image.Image], texts: list[list[tuple[str, str]]]) -> Any:
    """Images in rows, with lines of coloured text beside each."""
    figure, axes = plt.subplots(len(images), 2, figsize=(6.5, 1.1 * len(images)), width_ratios=[1, 5], squeeze=False)
    for (left, right), image, lines in zip(axes, images, texts, strict=True):
        left.imshow(image)
        left.set(xticks=[], yticks=[])
        right.axis("off")
        for i, (text, colour) in enumerate(lines):
            right.text(0, 0.82 - 0.32 * i, _printable(text), color=colour, fontsize=9, va="center")
    return figure


def _printable(text: str) -> str:
    """Replace unprintable characters, which a byte-level tokenizer can produce, with spaces."""
    return "".join(char if char.isprintable() else " " for char in text)


def _image(row: dict[str, Any]) -> Image.Image:
    return decode(row["image"]["bytes"])
