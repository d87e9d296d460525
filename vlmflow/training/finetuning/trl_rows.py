"""Training rows in TRL's conversational formats, with one turn each, for the families of transformers."""

from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image

from vlmflow.images.decoding import to_rgb
from vlmflow.inference.inputs import image_processor, whole_image
from vlmflow.training.augment import augment_with_views
from vlmflow.training.augment_config import AugmentConfig
from vlmflow.training.finetuning.box_views import bounding_boxes, transcode_view
from vlmflow.training.finetuning.examples import Example

IMAGE_MARKER = "<image>"
PARTS = datasets.List({"type": datasets.Value("string"), "text": datasets.Value("string")})
MESSAGES = datasets.List({"role": datasets.Value("string"), "content": PARTS})
IMAGES = {
    "images": datasets.List(datasets.Image()),
    "is_text": datasets.Value("bool"),
    "augment": datasets.Value("bool"),
}


def to_trl_dataset(examples: list[Example], augment: bool) -> datasets.Dataset:
    """One row for each turn, as prompt and completion; with augmentation if `augment`, else as they are."""
    rows = [
        {
            **image_columns(example.images, augment, "ocr" in example.tasks),
            "prompt": to_messages("user", question, len(example.images)),
            "completion": to_messages("assistant", answer),
        }
        for example in examples
        for question, answer in example.turns
    ]
    features = datasets.Features({**IMAGES, "prompt": MESSAGES, "completion": MESSAGES})
    return datasets.Dataset.from_list(rows, features=features)


def image_columns(images: Any, augment: bool, is_text: bool = False) -> dict[str, Any]:
    """The columns of a row that hold its images, and how to augment them."""
    return {"images": [{"bytes": image, "path": None} for image in images], "is_text": is_text, "augment": augment}


def to_messages(role: str, text: str, images: int = 0) -> list[dict[str, Any]]:
    """A message of parts: its images at the markers `<image>`, or in front of a text without markers."""
    pieces = text.split(IMAGE_MARKER) if images > 1 else [text]
    if len(pieces) != images + 1:
        pieces = [""] * images + [text]
    parts: list[dict[str, Any]] = []
    for i, piece in enumerate(pieces):
        parts += [{"type": "image", "text": None}] * (i > 0)
        parts += [{"type": "text", "text": piece}] * bool(piece or not images)
    return [{"role": role, "content": parts}]


class AugmentingCollator:
    """Prepares rows for TRL's `collate`: augments the images and writes boxes as the model does.

    Rows of several images are not augmented.
    """

    def __init__(self, collate: Any, processor: Any, augment: AugmentConfig | None):
        self.collate, self.augment = collate, augment
        self.image_processor = image_processor(processor)
        self.convention = getattr(processor, "box_convention", "pixels")

    def __call__(self, batch: list[dict[str, Any]]) -> Any:
        return self.collate([self.prepare(row) for row in batch])

    def prepare(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row with its images and texts as the model reads them."""
        images = [to_rgb(image) for image in row["images"]]
        chats = {name: value for name, value in row.items() if name not in IMAGES}
        texts = [part["text"] for chat in chats.values() for m in chat for part in m["content"] if part["text"]]
        size, views = images[0].size, None
        if self.augment is not None and row["augment"] and len(images) == 1:
            pixels = torch.from_numpy(np.array(images[0])).permute(2, 0, 1)[None]
            keep, is_text = bounding_boxes([texts], [size]), torch.tensor([row["is_text"]])
            pixels, views = augment_with_views(pixels, self.augment, keep, is_text)
            images = [Image.fromarray(pixels[0].permute(1, 2, 0).numpy())]

        def convert(part: dict[str, Any]) -> dict[str, Any]:
            if part["type"] == "image":
                return {"type": "image"}
            return {"type": "text", "text": transcode_view(part["text"], self.convention, size, views, 0)}

        return {"images": [whole_image(self.image_processor, image) for image in images]} | {
            name: [{**message, "content": [convert(part) for part in message["content"]]} for message in chat]
            for name, chat in chats.items()
        }
