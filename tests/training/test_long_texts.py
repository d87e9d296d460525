"""Texts that a model cannot read whole: each limit is reported."""

import io
import logging

import pytest
from PIL import Image

from models.tiny.build import build_dual_encoder, build_language_model
from vlmflow.errors import DataError
from vlmflow.training.finetuning.examples import Example
from vlmflow.training.finetuning.packed_rows import PackedRows
from vlmflow.training.pretraining.collator import PretrainCollator
from vlmflow.training.pretraining.config import PretrainConfig
from vlmflow.training.pretraining.training import warn_of_long_captions

SMALL = {"num_hidden_layers": 1, "vision_layers": 1, "text_layers": 1, "max_position_embeddings": 48}
buffer = io.BytesIO()
Image.new("RGB", (8, 8)).save(buffer, "PNG")
PNG = buffer.getvalue()


def pack(*turns: tuple[str, str], images: int = 1) -> PackedRows:
    model, processor = build_language_model(["a red circle"] * 3, **SMALL)
    return PackedRows([Example((PNG,) * images, list(turns), {"vqa"})], model, processor, None)


def test_answers_that_are_cut_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    rows = pack(("a", "circle"), ("a", "b" * 60))
    assert "1 of 2 turns are longer than the model's 32 positions" in caplog.text
    assert [len(question) + len(answer) for question, answer in rows.turns[0]][1] == 32


@pytest.mark.parametrize(
    ("turn", "images", "message"),
    [
        (("a" * 40, "b"), 1, "a question has .* the model has 32 positions"),
        (("<image> or <image>?", "b"), 2, "a conversation has 2 images"),
    ],
)
def test_questions_that_do_not_fit_are_an_error(turn: tuple[str, str], images: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        pack(turn, images=images)


def test_captions_that_are_cut_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    collator = PretrainCollator(*build_dual_encoder(["a red circle"] * 3, **SMALL), PretrainConfig())
    with caplog.at_level(logging.WARNING):
        warn_of_long_captions(collator, ["a circle", "b" * 60])
    assert "1 of 2 captions are longer than the 48 tokens that the text tower reads, up to 61" in caplog.text
