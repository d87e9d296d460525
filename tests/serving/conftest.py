"""Tiny checkpoints with random weights, and a server of the application on a thread."""

import base64
import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from PIL import Image
from starlette.types import ASGIApp

from models.tiny.build import build_dual_encoder, build_language_model
from vlmflow.artifacts.checkpoint import save
from vlmflow.serving.app import create_app
from vlmflow.serving.predictor import Predictor
from vlmflow.serving.server import bind, create_server

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
def predictor(chat_model: Path) -> Predictor:
    """A loaded predictor with the name `vlm`."""
    predictor = Predictor("vlm", chat_model)
    predictor.load()
    return predictor


@pytest.fixture(scope="session")
def client(predictor: Predictor) -> Iterator[httpx.Client]:
    """A client of a server of the predictor."""
    with served(create_app(predictor)) as url, httpx.Client(base_url=url, timeout=30) as http:
        yield http


@contextmanager
def served(app: ASGIApp) -> Iterator[str]:
    """Serve an application on a thread, and yield its URL."""
    with bind("127.0.0.1", 0) as listener:
        listener.listen()
        server = create_server(app)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="session")
def encoded() -> str:
    """A PNG in base64."""
    return encode(Image.new("RGB", (80, 60), "red"))


def encode(image: Image.Image, form: str = "PNG", **options: object) -> str:
    """Return an encoded image in base64."""
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return base64.b64encode(buffer.getvalue()).decode()
