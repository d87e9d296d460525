"""A checkpoint of the sketch family with random weights, and the real server over it."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from PIL import Image

from components.deploy.smoke_test import local_predictor
from models.tiny import build_dual_encoder, build_language_model
from vlmflow.artifacts.checkpoint import save

SIZES = {"vision_layers": 1, "text_layers": 1}


@pytest.fixture(scope="session")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that chats and embeds."""
    folder = tmp_path_factory.mktemp("models") / "speaker"
    model, processor = build_language_model(["a red circle", "what is it"] * 20, **SIZES, num_hidden_layers=1)
    return save(folder, model, processor, family="sketch", step="align").path


@pytest.fixture(scope="session")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that only embeds."""
    folder = tmp_path_factory.mktemp("models") / "embedder"
    model, processor = build_dual_encoder(["a red circle", "what is it"] * 20, **SIZES)
    return save(folder, model, processor, family="sketch-dual", step="pretrain").path


@pytest.fixture(scope="session")
def client(speaker: Path) -> Iterator[httpx.Client]:
    """A client of the running predictor, called `vlm`."""
    with local_predictor(speaker, "vlm", timeout=90) as url, httpx.Client(base_url=url, timeout=30) as connected:
        yield connected


@pytest.fixture(scope="session")
def encoded() -> str:
    """A PNG as base64."""
    buffer = io.BytesIO()
    Image.new("RGB", (80, 60), "red").save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
