"""Seconds of a CLIP training step, ours against open_clip's: the same weights, batch and optimizer, by turns.

    python -m benchmarks.pretrain            # 60 turns of a ViT-B/32 at half its width and depth, batch 16, float32

A step is forward, loss, backward and AdamW. Both start from the same weights and must find the same loss, or there is
no race. One of each is timed in turn, so that a machine that is slower for a while is so for both, in one process of
one thread, by that process's own clock: what else runs on the machine counts little. What is reported is the ratio of
the medians, ours over theirs, with a bootstrap interval over the turns; and the same by the wall's clock.

open_clip is loaded without its package's `__init__`, which imports torchvision's transforms. Its model wants one name
of torchvision, a batch norm that a vision transformer never has; where torchvision is not there, a placeholder has
that name.
"""

import argparse
import importlib
import importlib.metadata
import json
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from benchmarks.data import hardware
from vlmflow.runtime.process import limit_threads

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "pretrain.json"
IMAGE, PATCH, LENGTH, VOCABULARY = 224, 32, 77, 49408  # ViT-B/32's own
VISION, TEXT, LAYERS, PROJECTION, HEAD = 384, 256, 6, 256, 64  # half of its 768, 512, 12 and 512
_NORM = "torchvision.ops.misc"
RATE, DECAY, BETAS = 1e-4, 0.2, (0.9, 0.98)


@cache
def open_clip() -> Any:
    """open_clip's modules `model` and `loss`.

    Raises:
        SystemExit: it is not installed.
    """
    try:
        place = importlib.metadata.distribution("open_clip_torch").locate_file("open_clip")
    except importlib.metadata.PackageNotFoundError:
        raise SystemExit("open_clip_torch is not installed: pip install --no-deps open_clip_torch==3.3.0") from None
    import transformers  # noqa: F401  open_clip imports it, and it must not take the placeholder for torchvision

    package = ModuleType("open_clip")
    package.__path__ = [str(place)]
    placeholders: dict[str, Any] = {name: ModuleType(name) for name in ("torchvision", "torchvision.ops", _NORM)}
    placeholders[_NORM].FrozenBatchNorm2d = type("FrozenBatchNorm2d", (), {})
    try:
        importlib.import_module(_NORM)
        placeholders = {}
    except (ImportError, RuntimeError):
        sys.modules.update(placeholders)
    sys.modules["open_clip"] = package
    try:
        for name in ("model", "loss"):
            setattr(package, name, importlib.import_module(f"open_clip.{name}"))
    finally:
        for name in placeholders:
            del sys.modules[name]
    return package


def theirs(quick_gelu: bool = True) -> Any:
    """open_clip's CLIP with new weights."""
    model = open_clip().model
    vision = {"image_size": IMAGE, "patch_size": PATCH, "width": VISION, "layers": LAYERS, "head_width": HEAD}
    text = {"context_length": LENGTH, "vocab_size": VOCABULARY, "width": TEXT, "layers": LAYERS, "heads": TEXT // HEAD}
    return model.CLIP(PROJECTION, vision, text, quick_gelu=quick_gelu)


def ours() -> Any:
    """Our CLIP of the same sizes."""
    from models.contrastive import clip

    model, _ = clip.build(
        [],
        image_size=IMAGE,
        patch_size=PATCH,
        vision_hidden_size=VISION,
        vision_layers=LAYERS,
        text_hidden_size=TEXT,
        text_layers=LAYERS,
        projection_dim=PROJECTION,
        head_dim=HEAD,
        text_length=LENGTH,
        vocab_size=VOCABULARY,
    )
    model.text_model.eos_token_id = VOCABULARY - 1  # open_clip pools at the highest id
    return model


def translated(state: dict[str, Any]) -> dict[str, Any]:
    """open_clip's weights by the names of ours, which are transformers'."""
    names = {
        "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
        "visual.class_embedding": "vision_model.embeddings.class_embedding",
        "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
        "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
        "positional_embedding": "text_model.embeddings.position_embedding.weight",
        "logit_scale": "logit_scale",
    }
    parts = [
        ("visual.ln_pre", "vision_model.pre_layrnorm"),
        ("visual.ln_post", "vision_model.post_layernorm"),
        ("visual.transformer.resblocks", "vision_model.encoder.layers"),
        ("transformer.resblocks", "text_model.encoder.layers"),
        ("ln_final", "text_model.final_layer_norm"),
        (".ln_1.", ".layer_norm1."),
        (".ln_2.", ".layer_norm2."),
        (".attn.", ".self_attn."),
        (".c_fc.", ".fc1."),
        (".c_proj.", ".fc2."),
    ]
    found = {}
    for name, value in state.items():
        if name in ("visual.proj", "text_projection"):
            found["visual_projection.weight" if "visual" in name else "text_projection.weight"] = value.T
        elif name in names:
            found[names[name]] = value
        elif not name.endswith("attn_mask"):
            for before, after in parts:
                name = name.replace(before, after)
            if ".in_proj_" in name:
                for letter, part in zip("qkv", value.chunk(3), strict=True):
                    found[name.replace("in_proj_", f"{letter}_proj.")] = part
            else:
                found[name] = value
    return found


def batch(size: int) -> dict[str, Any]:
    """Noise for pictures, and captions of 8 to 40 tokens, padded to the full length for both."""
    import torch

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, VOCABULARY - 2, (size, LENGTH), generator=generator)
    ends = torch.randint(7, 40, (size, 1), generator=generator)
    place = torch.arange(LENGTH)[None]
    ids = torch.where(place == ends, VOCABULARY - 1, ids).masked_fill(place > ends, 0)
    pictures = torch.randn(size, 3, IMAGE, IMAGE, generator=generator)
    return {"pixel_values": pictures, "input_ids": ids, "attention_mask": (place <= ends).long()}


def stepper(model: Any, loss: Callable[[], Any]) -> Callable[[], float]:
    """A training step of `model`; called, it returns the loss."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY, betas=BETAS, fused=True)

    def step() -> float:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        return value.item()

    return step


def race(size: int, turns: int, warm: int) -> tuple[dict[str, np.ndarray], dict[str, list[float]]]:
    """Seconds (turns, 2) of every step of both, by the process's clock and the wall's, and the losses."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    given, models = batch(size), {"vlmflow": ours().train(), "open_clip": theirs().train()}
    models["vlmflow"].load_state_dict(translated(models["open_clip"].state_dict()))
    contrast = open_clip().loss.ClipLoss()
    losses: dict[str, Callable[[], Any]] = {
        "vlmflow": lambda: models["vlmflow"](**given).loss,
        "open_clip": lambda: contrast(*models["open_clip"](given["pixel_values"], given["input_ids"])),
    }
    steps = {name: stepper(model, losses[name]) for name, model in models.items()}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    found: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(warm + turns):
        for name in sorted(steps, reverse=turn % 2 == 0):  # neither is always the first
            own, wall = time.process_time(), time.perf_counter()
            found[name].append(steps[name]())
            seconds[name].append((time.process_time() - own, time.perf_counter() - wall))
    return {name: np.array(values[warm:]) for name, values in seconds.items()}, found


def ratio(ours: np.ndarray, theirs: np.ndarray, resamples: int = 10_000) -> dict[str, float]:
    """The medians' ratio, ours over theirs, and its 95% bootstrap interval over the turns."""
    chosen = np.random.default_rng(0).integers(0, len(ours), (resamples, len(ours)))
    drawn = np.median(ours[chosen], axis=1) / np.median(theirs[chosen], axis=1)
    low, high = np.quantile(drawn, (0.025, 0.975))
    values = {"ratio": np.median(ours) / np.median(theirs), "low": low, "high": high}
    return {name: round(float(value), 4) for name, value in values.items()}


def main() -> None:
    """Race, print and write `results/pretrain.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--turns", type=int, default=60)
    parser.add_argument("--warm", type=int, default=3, help="steps of each before the clock starts")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    limit_threads()
    import torch
    import transformers
    from rich.console import Console

    seconds, losses = race(given.batch, given.turns, given.warm)
    apart = max(abs(one - other) for one, other in zip(losses["vlmflow"][:3], losses["open_clip"][:3], strict=True))
    if apart > 1e-3:
        raise SystemExit(f"the losses of the first steps are {apart:.4f} apart: the two do not compute the same")
    found, wall = (ratio(seconds["vlmflow"][:, i], seconds["open_clip"][:, i]) for i in (0, 1))
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    versions["open_clip_torch"] = importlib.metadata.version("open_clip_torch")
    sizes = {"image": IMAGE, "patch": PATCH, "vision_hidden_size": VISION, "text_hidden_size": TEXT, "layers": LAYERS}
    content = {
        "hardware": hardware(),
        "versions": versions,
        "sizes": {**sizes, "length": LENGTH, "vocabulary": VOCABULARY, "batch": given.batch},
        "precision": "float32",
        "threads": 1,
        "median_seconds": {name: round(float(np.median(of[:, 0])), 4) for name, of in seconds.items()},
        **found,
        "by_the_wall": wall,
        "first_losses": {name: [round(value, 5) for value in values[:3]] for name, values in losses.items()},
        "seconds": {name: of[:, 0].round(4).tolist() for name, of in seconds.items()},
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    console = Console(highlight=False)
    console.print(f"a step of batch {given.batch}: {content['median_seconds']} s")
    console.print(f"ours over open_clip's: {found['ratio']} [{found['low']}, {found['high']}], {given.turns} turns")
    console.print(hardware())


if __name__ == "__main__":
    main()
