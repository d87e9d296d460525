"""Pretraining initialised from a checkpoint that transformers wrote, in the format of the Hugging Face Hub."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPModel, CLIPProcessor, ViTMAEConfig, ViTMAEForPreTraining
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from components.ingest.config import IngestConfig, ScenesConfig
from components.ingest.ingestion import ingest
from models.contrastive import clip
from vlmflow.artifacts.checkpoint import Checkpoint
from vlmflow.artifacts.dataset import Dataset
from vlmflow.errors import ModelError
from vlmflow.inference.loading import load
from vlmflow.training.config import TrainingConfig
from vlmflow.training.pretraining.config import PretrainConfig
from vlmflow.training.pretraining.training import pretrain

BUDGET = TrainingConfig(max_steps=1, batch_size=4, warmup_steps=0, learning_rate=1e-6, optimizer="adamw")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    clean = ScenesConfig(web=16, boxes=0, signs=0, test=4, shuffled=0, duplicates=0, junk=0, bad=0)
    path = tmp_path_factory.mktemp("pairs") / "pairs"
    ingest(IngestConfig(source="scenes", scenes=clean), path)
    return path


def stock_clip(folder: Path) -> torch.nn.Module:
    """Write transformers' CLIP with random weights to `folder`."""
    sizes: Any = {
        "vision_hidden_size": 32,
        "vision_layers": 1,
        "text_hidden_size": 32,
        "text_layers": 1,
        "head_dim": 16,
    }
    config, processor = clip.build_towers_config(
        ["a red circle"] * 5, image_size=32, patch_size=8, projection_dim=16, **sizes
    )
    processor.image_processor.size = {"shortest_edge": 40}  # as OpenAI: resize the short side, then crop
    processor.image_processor.do_center_crop = True
    processor.image_processor.crop_size = {"height": 32, "width": 32}
    model = CLIPModel(config)
    model.save_pretrained(folder)
    CLIPProcessor(processor.image_processor, processor.tokenizer).save_pretrained(folder)
    return model


def stock_mae(folder: Path) -> torch.nn.Module:
    """Write transformers' ViT-MAE with random weights to `folder`."""
    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes["intermediate_size"] = 64
    decoder: dict[str, Any] = {f"decoder_{name}": value for name, value in sizes.items()}
    model = ViTMAEForPreTraining(ViTMAEConfig(**sizes, **decoder, image_size=32, patch_size=8))
    model.save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return model


@pytest.mark.parametrize(("family", "write"), [("clip", stock_clip), ("mae", stock_mae)])
def test_training_starts_from_the_given_weights(tmp_path: Path, pairs: Path, family: str, write: Any) -> None:
    before = write(tmp_path / "public")
    section = PretrainConfig(family=family, init_from=str(tmp_path / "public"), training=BUDGET)
    pretrain(pairs=pairs, conversations=None, out=tmp_path / "model", section=section)
    assert Checkpoint(tmp_path / "model").card["parent"] == str(tmp_path / "public")
    after = load(tmp_path / "model").model
    for (name, old), new in zip(before.named_parameters(), after.parameters(), strict=True):
        torch.testing.assert_close(new, old, atol=1e-4, rtol=1e-4, msg=f"{name} differs from the checkpoint")
    assert any((new != old).any() for old, new in zip(before.parameters(), after.parameters(), strict=True))
    assert len(Dataset(pairs)) > 0


def test_an_unusable_checkpoint_is_reported_in_one_line(
    tmp_path: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # otherwise it retries for 20 seconds
    stock_mae(tmp_path / "public")
    (tmp_path / "empty").mkdir()
    for start in ("nobody/nothing", str(tmp_path / "empty")):
        with pytest.raises(ModelError, match="pretrain.init_from") as caught:
            section = PretrainConfig(family="clip", init_from=start, training=BUDGET)
            pretrain(pairs=pairs, conversations=None, out=tmp_path / "model", section=section)
        assert "\n" not in str(caught.value) and not (tmp_path / "model").exists()
    with pytest.raises(ValueError, match="determines the sizes; remove model"):
        PretrainConfig(family="clip", init_from="nobody/nothing", model={"image_size": 32})


def test_a_checkpoint_of_another_family_is_rejected(tmp_path: Path, pairs: Path) -> None:
    stock_mae(tmp_path / "public")
    with pytest.raises(ModelError, match="model_type is vit_mae, not clip"):
        section = PretrainConfig(family="clip", init_from=str(tmp_path / "public"), training=BUDGET)
        pretrain(pairs=pairs, conversations=None, out=tmp_path / "model", section=section)
