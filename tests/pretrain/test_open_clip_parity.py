"""Parity of the benchmark's two models: our CLIP with open_clip's weights has the same loss and gradients."""

import importlib.metadata

import pytest
import torch

from benchmarks import pretrain as benchmark


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reduce the benchmark's CLIP so that a step takes milliseconds; skip without open_clip."""
    try:
        importlib.metadata.distribution("open_clip_torch")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("open_clip_torch is not installed")
    sizes = {
        "IMAGE": 32,
        "PATCH": 8,
        "LENGTH": 48,
        "VOCABULARY": 500,
        "VISION": 64,
        "TEXT": 64,
        "LAYERS": 2,
        "HEAD": 32,
    }
    for name, value in {**sizes, "PROJECTION": 32}.items():
        monkeypatch.setattr(benchmark, name, value)


def test_our_clip_has_the_loss_and_gradients_of_open_clip(small: None) -> None:
    torch.manual_seed(0)
    theirs, ours, batch = benchmark.build_open_clip(), benchmark.build_ours(), benchmark.make_batch(6)
    assert not ours.load_state_dict(benchmark.rename_weights(theirs.state_dict()), strict=True).missing_keys
    clip_loss = benchmark.open_clip().loss.ClipLoss()
    one, other = ours(**batch).loss, clip_loss(*theirs(batch["pixel_values"], batch["input_ids"]))
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    one.backward()
    other.backward()
    expected = benchmark.rename_weights({name: p.grad for name, p in theirs.named_parameters()})
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], atol=1e-5, rtol=1e-3)


def test_the_ratio_of_medians_lies_inside_its_interval() -> None:
    theirs = torch.linspace(1, 2, 21).numpy()
    assert benchmark.ratio(0.8 * theirs, theirs) == {"ratio": 0.8, "low": 0.8, "high": 0.8}, "turns are paired"
    result = benchmark.ratio(0.8 * theirs[::-1], theirs)
    assert result["ratio"] == pytest.approx(0.8) and result["low"] < 0.8 < result["high"]


def test_every_turn_is_timed_and_both_losses_agree(small: None) -> None:
    seconds, losses = benchmark.measure(4, turns=3, warmup=1)
    assert all(times.shape == (3, 2) and (times > 0).all() for times in seconds.values())
    assert losses["vlmflow"] == pytest.approx(losses["open_clip"], abs=1e-3) and len(losses["vlmflow"]) == 4
