"""The benchmark's two contestants compute the same: our CLIP with open_clip's weights, loss and gradients alike."""

import importlib.metadata

import pytest
import torch

from benchmarks import pretrain as benchmark


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CLIP that takes milliseconds."""
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


def test_our_clip_is_open_clips(small: None) -> None:
    torch.manual_seed(0)
    theirs, ours, given = benchmark.theirs(), benchmark.ours(), benchmark.batch(6)
    assert not ours.load_state_dict(benchmark.translated(theirs.state_dict()), strict=True).missing_keys
    contrast = benchmark.open_clip().loss.ClipLoss()
    one, other = ours(**given).loss, contrast(*theirs(given["pixel_values"], given["input_ids"]))
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    one.backward()
    other.backward()
    expected = benchmark.translated({name: p.grad for name, p in theirs.named_parameters()})
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], atol=1e-5, rtol=1e-3)


def test_the_ratio_is_of_medians_and_its_interval_holds_it() -> None:
    theirs = torch.linspace(1, 2, 21).numpy()
    assert benchmark.ratio(0.8 * theirs, theirs) == {"ratio": 0.8, "low": 0.8, "high": 0.8}, "turns go together"
    found = benchmark.ratio(0.8 * theirs[::-1], theirs)
    assert found["ratio"] == pytest.approx(0.8) and found["low"] < 0.8 < found["high"]


def test_the_race_times_every_turn(small: None) -> None:
    seconds, losses = benchmark.race(4, turns=3, warm=1)
    assert all(of.shape == (3, 2) and (of > 0).all() for of in seconds.values())
    assert losses["vlmflow"] == pytest.approx(losses["open_clip"], abs=1e-3) and len(losses["vlmflow"]) == 4
