"""The figure of a family: its outputs, and below them attention maps if its model has them."""

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from components.learning_check.figure import ATTENTION_MAPS, attention_rows, draw_figure
from models.contrastive import llip
from models.masked import vilbert
from vlmflow.artifacts import checkpoint, dataset
from vlmflow.inference.loading import LoadedModel
from vlmflow.inference.masked import attention_maps

CAPTION = "we see a red square left of a blue star"
SIZES: dict[str, dict[str, Any]] = {
    "vilbert": {
        "image_size": 16, "patch_size": 4, "region_dim": 8, "vision_hidden_size": 8, "vision_layers": 1,
        "vision_heads": 2, "vision_intermediate_size": 8, "text_hidden_size": 16, "text_layers": 1, "head_dim": 8,
        "co_attention_layers": 1, "co_attention_hidden_size": 8, "co_attention_heads": 2, "codebook_size": 4,
        "text_length": 32,
    },
    "llip": {
        "image_size": 16, "patch_size": 4, "vision_hidden_size": 16, "vision_layers": 1, "text_hidden_size": 16,
        "text_layers": 1, "projection_dim": 8, "head_dim": 8, "text_length": 32, "mixture_tokens": 3,
        "mixture_heads": 2,
    },
}  # fmt: skip
BUILD: dict[str, Any] = {"vilbert": vilbert.build, "llip": llip.build}


def row(number: int) -> dict[str, Any]:
    """A red square in the upper left quarter, and a blue one labelled as a star in the lower right quarter."""
    image, buffer = Image.new("RGB", (16, 16), (90, 90, 90)), io.BytesIO()
    image.paste((200, 30, 30), (0, 0, 8, 8))
    image.paste((30, 30, 200), (8, 8, 16, 16))
    image.save(buffer, "PNG")
    regions = [
        {"phrase": phrase, "category": "", "x0": start, "y0": start, "x1": start + 8, "y1": start + 8}
        for phrase, start in (("red square", 0), ("blue star", 8))
    ]
    return {
        "uid": str(number), "image": buffer.getvalue(), "caption": CAPTION, "width": 16, "height": 16, "source": "",
        "licence": "", "split": "test", "label": "", "regions": regions, "lines": [],
    }  # fmt: skip


def loaded(family: str, abilities: set[str]) -> LoadedModel:
    torch.manual_seed(0)
    model, processor = BUILD[family]([CAPTION] * 9, **SIZES[family])
    return LoadedModel(model.eval(), processor, {}, frozenset(abilities))


@pytest.mark.parametrize("family", ["vilbert", "llip"])
def test_the_attention_panel_is_below_the_output_panel(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset.write(tmp_path / "pairs", "pairs", [row(i) for i in range(4)])
    model, processor = BUILD[family]([CAPTION] * 9, **SIZES[family])
    checkpoint.save(tmp_path / "model", model, processor, family=family, step="pretrain")
    draw_figure(tmp_path / "model", tmp_path / "pairs", tmp_path / "both", 2)
    monkeypatch.delattr(type(model), "attention_maps")
    draw_figure(tmp_path / "model", tmp_path / "pairs", tmp_path / "one", 2)
    both, one = (Image.open(tmp_path / name) for name in ("both", "one"))
    assert both.format == "PNG" and both.height > one.height + 100
    assert np.array_equal(np.asarray(both)[: one.height, : one.width], np.asarray(one))
    assert np.asarray(both)[one.height :].std() > 20


def test_attention_maps_are_those_of_the_masked_word() -> None:
    model = loaded("vilbert", {"fill_mask"})
    image = Image.open(io.BytesIO(row(0)["image"]))
    found = attention_maps(model, [image] * 2, [CAPTION] * 2, [3, 8])
    assert found.shape == (2, 4, 4)
    for place, map in zip((3, 8), found, strict=True):
        words = CAPTION.split()
        words[place] = model.tokenizer.mask_token
        given = model.processor(text=[" ".join(words)], images=[image], return_tensors="pt")
        gap = (given["input_ids"][0] == model.tokenizer.mask_token_id).nonzero().item()
        given.pop("token_type_ids", None)
        expected = model.model.attention_maps(**given)[0, gap].detach()
        np.testing.assert_allclose(map, expected, atol=1e-6)
    assert not np.allclose(found[0], found[1])


class UpperLeftAttention:
    """A model that attends only to the upper left of four patches."""

    device = torch.device("cpu")
    config: Any = SimpleNamespace(
        model_type="pointing", get_text_config=lambda: SimpleNamespace(max_position_embeddings=32)
    )

    def attention_maps(self, pixel_values: torch.Tensor, input_ids: torch.Tensor, attention_mask: Any) -> torch.Tensor:
        maps = torch.zeros(len(pixel_values), input_ids.shape[1], 2, 2)
        maps[..., 0, 0] = 0.4
        return maps


@pytest.mark.parametrize(
    ("abilities", "texts"),
    [({"fill_mask"}, ["red", "square", "left", "blue", "star"]), ({"retrieval"}, ["red square", "blue star"])],
)
def test_words_or_phrases_are_shown_with_the_regions_they_name(abilities: set[str], texts: list[str]) -> None:
    processor = loaded("vilbert", set()).processor
    pointing = LoadedModel(UpperLeftAttention(), processor, {}, frozenset(abilities))
    given = {**row(0), "image": {"bytes": row(0)["image"]}}
    figure = attention_rows(pointing, [given, {**given, "caption": "there is a"}], 2)
    assert len(figure.axes) == 1 + ATTENTION_MAPS, "a caption without content words has no row"
    shown = [axis for axis in figure.axes if axis.get_title()]
    assert [axis.get_title() for axis in shown] == texts
    for axis, text in zip(shown, texts, strict=True):
        dark = axis.images[1].get_alpha()
        assert dark[0, 0] == 0 and (dark.ravel()[1:] > 0.8).all()
        assert tuple(axis.images[1].get_extent()) == (-0.5, 15.5, 15.5, -0.5)
        frames = {patch.get_xy() for patch in axis.patches}
        named = {"red": (0, 0), "square": (0, 0), "blue": (8, 8), "star": (8, 8)}
        assert frames == {named[word] for word in text.split() if word in named}
