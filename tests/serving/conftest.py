"""Tiny checkpoints with random weights, and a client of the real server."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from PIL import Image

from components.deploy.smoke_test import local_predictor
from models.tiny.build import build_dual_encoder, build_language_model
from vlmflow.artifacts.checkpoint import save

SIZES = {"vision_layers": 1, "text_layers": 1}


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that can chat and embed."""
    folder = tmp_path_factory.mktemp("models") / "chat"
    model, processor = build_language_model(["a red circle", "what is it"] * 20, **SIZES, num_hidden_layers=1)
    return save(folder, model, processor, family="tiny-vlm", step="align").path


@pytest.fixture(scope="session")
def embedding_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that can only embed and classify."""
    folder = tmp_path_factory.mktemp("models") / "embedding"
    model, processor = build_dual_encoder(["a red circle", "what is it"] * 20, **SIZES)
    return save(folder, model, processor, family="tiny-dual-encoder", step="pretrain").path


@pytest.fixture(scope="session")
def client(chat_model: Path) -> Iterator[httpx.Client]:
    """A client of a running predictor that serves the model `vlm`."""
    with local_predictor(chat_model, "vlm", timeout=90) as url, httpx.Client(base_url=url, timeout=30) as http:
        yield http


@pytest.fixture(scope="session")
def encoded() -> str:
    """A PNG in base64."""
    buffer = io.BytesIO()
    Image.new("RGB", (80, 60), "red").save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
