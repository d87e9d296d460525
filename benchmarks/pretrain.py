"""Time of a CLIP training step, ours against open_clip's, with the same weights, batch and optimizer.

    python -m benchmarks.pretrain            # 60 turns of a ViT-B/32 at half its width and depth, batch 16, float32

A step is forward pass, loss, backward pass and AdamW. Both models start from the same weights; the benchmark fails if
their losses differ. Each turn times one step of each model, so that a temporary slowdown of the machine affects both.
Both run in one process with one thread and are timed by CPU time, which other load on the machine affects little.
Reported is the ratio of the medians, ours over theirs, with a bootstrap interval over the turns; and the same ratio in
wall-clock time.

open_clip is loaded without its package's `__init__`, which imports torchvision's transforms. Its model module imports
one name of torchvision, a batch norm that vision transformers do not use. Without torchvision, a placeholder stands in.
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

from benchmarks.data import describe_hardware
from vlmflow.runtime.process import limit_threads

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "pretrain.json"
IMAGE, PATCH, LENGTH, VOCABULARY = 224, 32, 77, 49408  # as in ViT-B/32
VISION, TEXT, LAYERS, PROJECTION, HEAD = 384, 256, 6, 256, 64  # half of ViT-B/32's 768, 512, 12 and 512
_NORM = "torchvision.ops.misc"
RATE, DECAY, BETAS = 1e-4, 0.2, (0.9, 0.98)


@cache
def open_clip() -> Any:
    """Load open_clip's modules `model` and `loss`.

    Raises:
        SystemExit: open_clip is not installed.
    """
    try:
        location = importlib.metadata.distribution("open_clip_torch").locate_file("open_clip")
    except importlib.metadata.PackageNotFoundError:
        raise SystemExit("open_clip_torch is not installed: pip install --no-deps open_clip_torch==3.3.0") from None
    # open_clip imports transformers. Import it before the placeholder exists, so that it does not detect torchvision.
    import transformers  # noqa: F401

    package = ModuleType("open_clip")
    package.__path__ = [str(location)]
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


def build_open_clip(quick_gelu: bool = True) -> Any:
    """Build open_clip's CLIP with random weights."""
    model = open_clip().model
    vision = {"image_size": IMAGE, "patch_size": PATCH, "width": VISION, "layers": LAYERS, "head_width": HEAD}
    text = {"context_length": LENGTH, "vocab_size": VOCABULARY, "width": TEXT, "layers": LAYERS, "heads": TEXT // HEAD}
    return model.CLIP(PROJECTION, vision, text, quick_gelu=quick_gelu)


def build_ours() -> Any:
    """Build our CLIP with the same sizes."""
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


def rename_weights(state: dict[str, Any]) -> dict[str, Any]:
    """Rename open_clip's weights to the names of our CLIP, which are those of transformers."""
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
    renamed = {}
    for name, value in state.items():
        if name in ("visual.proj", "text_projection"):
            renamed["visual_projection.weight" if "visual" in name else "text_projection.weight"] = value.T
        elif name in names:
            renamed[names[name]] = value
        elif not name.endswith("attn_mask"):
            for old, new in parts:
                name = name.replace(old, new)
            if ".in_proj_" in name:
                for letter, part in zip("qkv", value.chunk(3), strict=True):
                    renamed[name.replace("in_proj_", f"{letter}_proj.")] = part
            else:
                renamed[name] = value
    return renamed


def make_batch(size: int) -> dict[str, Any]:
    """Make noise images and captions of 8 to 40 tokens, padded to the full length for both models."""
    import torch

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, VOCABULARY - 2, (size, LENGTH), generator=generator)
    ends = torch.randint(7, 40, (size, 1), generator=generator)
    positions = torch.arange(LENGTH)[None]
    ids = torch.where(positions == ends, VOCABULARY - 1, ids).masked_fill(positions > ends, 0)
    images = torch.randn(size, 3, IMAGE, IMAGE, generator=generator)
    return {"pixel_values": images, "input_ids": ids, "attention_mask": (positions <= ends).long()}


def make_step(model: Any, loss: Callable[[], Any]) -> Callable[[], float]:
    """Return a function that runs one training step of `model` and returns the loss."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY, betas=BETAS, fused=True)

    def step() -> float:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        return value.item()

    return step


def measure(size: int, turns: int, warmup: int) -> tuple[dict[str, np.ndarray], dict[str, list[float]]]:
    """Time the steps of both models.

    Returns:
        Per model, seconds (turns, 2) of every step in CPU and wall-clock time; and the losses, including warm-up.
    """
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    batch, models = make_batch(size), {"vlmflow": build_ours().train(), "open_clip": build_open_clip().train()}
    models["vlmflow"].load_state_dict(rename_weights(models["open_clip"].state_dict()))
    clip_loss = open_clip().loss.ClipLoss()
    losses: dict[str, Callable[[], Any]] = {
        "vlmflow": lambda: models["vlmflow"](**batch).loss,
        "open_clip": lambda: clip_loss(*models["open_clip"](batch["pixel_values"], batch["input_ids"])),
    }
    steps = {name: make_step(model, losses[name]) for name, model in models.items()}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    values: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(warmup + turns):
        for name in sorted(steps, reverse=turn % 2 == 0):  # the order alternates
            cpu, wall = time.process_time(), time.perf_counter()
            values[name].append(steps[name]())
            seconds[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    return {name: np.array(times[warmup:]) for name, times in seconds.items()}, values


def ratio(ours: np.ndarray, theirs: np.ndarray, resamples: int = 10_000) -> dict[str, float]:
    """Ratio of the medians, ours over theirs, with its 95% bootstrap interval over the turns."""
    chosen = np.random.default_rng(0).integers(0, len(ours), (resamples, len(ours)))
    resampled = np.median(ours[chosen], axis=1) / np.median(theirs[chosen], axis=1)
    low, high = np.quantile(resampled, (0.025, 0.975))
    values = {"ratio": np.median(ours) / np.median(theirs), "low": low, "high": high}
    return {name: round(float(value), 4) for name, value in values.items()}


def main() -> None:
    """Measure, print the result and write `results/pretrain.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--turns", type=int, default=60)
    parser.add_argument("--warmup", type=int, default=3, help="steps of each model that are run first and not counted")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    limit_threads()
    import torch
    import transformers
    from rich.console import Console

    seconds, losses = measure(args.batch, args.turns, args.warmup)
    first = zip(losses["vlmflow"][:3], losses["open_clip"][:3], strict=True)
    difference = max(abs(one - other) for one, other in first)
    if difference > 1e-3:
        raise SystemExit(
            f"the losses of the first steps differ by {difference:.4f}, more than 0.001: the models are not equivalent"
        )
    result, wall = (ratio(seconds["vlmflow"][:, i], seconds["open_clip"][:, i]) for i in (0, 1))
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    versions["open_clip_torch"] = importlib.metadata.version("open_clip_torch")
    sizes = {"image": IMAGE, "patch": PATCH, "vision_hidden_size": VISION, "text_hidden_size": TEXT, "layers": LAYERS}
    content = {
        "hardware": describe_hardware(),
        "versions": versions,
        "sizes": {**sizes, "length": LENGTH, "vocabulary": VOCABULARY, "batch": args.batch},
        "precision": "float32",
        "threads": 1,
        "median_seconds": {name: round(float(np.median(times[:, 0])), 4) for name, times in seconds.items()},
        **result,
        "wall_clock": wall,
        "first_losses": {name: [round(value, 5) for value in values[:3]] for name, values in losses.items()},
        "seconds": {name: times[:, 0].round(4).tolist() for name, times in seconds.items()},
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    console = Console(highlight=False)
    console.print(f"step with batch size {args.batch}: {content['median_seconds']} s")
    console.print(f"ours / open_clip: {result['ratio']} [{result['low']}, {result['high']}], {args.turns} turns")
    console.print(describe_hardware())


if __name__ == "__main__":
    main()
