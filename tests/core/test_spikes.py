"""What is a spike: against values worked out by hand, after NaN and after a resume."""

from __future__ import annotations

import math

import pytest

from core.errors import SpikeError
from core.training.spikes import Spikes, SpikesConfig

CONFIG = SpikesConfig(above=5, window=8, allowed=2)


def entry(step: int, loss: float, norm: float = 1.0, **more) -> dict:
    return {"step": step, "stream": "image", "loss": loss, "grad_norm": norm, **more}


def filled(losses=(1.0, 2.0, 4.0, 2.0), config: SpikesConfig = CONFIG) -> Spikes:
    spikes = Spikes(config)
    spikes.read([entry(step, loss) for step, loss in enumerate(losses, 1)])
    return spikes


def test_the_threshold_is_the_median_and_its_spread_in_logarithms():
    # log2 of the losses: 0, 1, 2, 1. Their median is 1; distances 1, 0, 1, 0: median 0.5; spread 1.4826 * 0.5 octaves.
    limit = 2 ** (1 + 5 * 1.4826 * 0.5)
    spikes = filled()
    assert not spikes.is_spike("image", entry(5, limit * 0.999))
    assert spikes.is_spike("image", entry(5, limit * 1.001))
    # All norms are 1, so that the least spread counts: 2 % each.
    assert not spikes.is_spike("image", entry(5, 2.0, math.exp(5 * 0.02) * 0.999))
    assert spikes.is_spike("image", entry(5, 2.0, math.exp(5 * 0.02) * 1.001))
    assert not spikes.is_spike("image", entry(5, 1e-9, 1e-9))  # lower is never a spike


def test_nothing_is_judged_before_half_a_window_nor_by_another_stream_nor_when_off():
    assert not filled((1.0, 2.0, 4.0)).is_spike("image", entry(4, 1e9))
    assert not filled().is_spike("audio", entry(5, 1e9))
    assert not filled(config=SpikesConfig()).is_spike("image", entry(5, 1e9))


def test_a_spike_never_becomes_usual_and_too_many_stop(tmp_path):
    """Broken: what was rejected enters the window, so that a plateau of spikes soon is no spike."""
    spikes = filled()
    for step in (5, 6):
        assert spikes.is_spike("image", entry(step, 1e3))
        spikes.contain(step - 1, "image", entry(step, 1e3), tmp_path)
    assert spikes.is_spike("image", entry(7, 1e3))
    with pytest.raises(SpikeError, match=r"step 7 \(image\) is a spike \(loss 1000, .*as were 2 of the last 8"):
        spikes.contain(6, "image", entry(7, 1e3), tmp_path)
    for step in range(7, 13):  # six more: the first spike has left the window of eight
        spikes.add("image", entry(step, 2.0), spike=False)
    assert not spikes.is_spike("image", entry(13, 2.0))
    spikes.add("image", entry(13, 2.0), spike=False)
    spikes.contain(13, "image", entry(14, 1e3), tmp_path)


def test_a_resume_knows_what_the_run_knew(tmp_path):
    """Broken: a window that starts empty again judges nothing at first."""
    lines = [entry(1, 1.0), entry(2, 2.0), entry(3, 1e3, spike=True), entry(4, 4.0), entry(5, 2.0)]
    lines.insert(2, {"step": 3, "stream": "image", "skipped": True})
    whole, resumed = filled((1.0, 2.0)), Spikes(CONFIG)
    whole.contain(2, "image", entry(3, 1e3), tmp_path)
    for line in lines[-2:]:
        whole.add("image", line, spike=False)
    resumed.read(lines)
    assert resumed._usual == whole._usual
    assert resumed._marks == whole._marks


@pytest.mark.parametrize(
    ("settings", "problem"),
    [({"above": -1}, "above: -1"), ({"window": 7}, "window: 7"), ({"allowed": -1}, "allowed: -1")],
)
def test_settings_are_checked(settings, problem):
    (line,) = SpikesConfig(**settings).problems()
    assert line.startswith(problem)
