"""What a step keeps in memory: by hand, against what the allocator really gave out, and as CUDA casts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from configs.assembly import Assembly
from configs.load import load_config
from core.objective import Objective
from core.training.loader import Microbatch
from core.trunk.recompute import recompute
from core.types import FeatureLayers, TokenBatch, TrunkOutput
from tests.tools.test_flops import B, C, N, microbatch
from tests.tools.test_standins import several
from tests.tools.tiny import CONFIG
from tools.dry_run import memory
from tools.dry_run.memory import kept_by_forward, microbatch_bytes, saved_bytes, state_bytes
from tools.dry_run.plan import first_batch
from tools.dry_run.standins import open_data


class OneLayer(nn.Module):
    """The smallest trunk: x W for its only segment."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(C, C, bias=False)

    def forward(
        self, noisy: tuple[torch.Tensor, ...], levels, batch: TokenBatch, feature_layers: FeatureLayers
    ) -> TrunkOutput:
        return TrunkOutput((self.layer(noisy[0]),))


@pytest.mark.parametrize(("precision", "bytes_of_input"), [("fp32", 4), ("bf16", 2)])
def test_one_layer_by_hand(precision, bytes_of_input):
    """Of the layer its input, of the square what is squared, of the sum which tokens count (booleans). The weight is
    not asked for: nobody needs the gradient of the input."""
    wanted = bytes_of_input * B * N * C + 4 * B * N * C + B * N
    found = saved_bytes(Objective(), OneLayer(), microbatch(), precision, "cpu")
    assert wanted <= found <= wanted + 64  # and the numbers of the mean


def test_a_microbatch_and_a_state_by_hand():
    given = microbatch()
    # Tokens and noise, positions, times of student and teacher, index of the student's, label, dropped.
    wanted = 2 * 4 * B * N * C + 8 * 3 * N + 4 * B * 3 + 8 * B * N + 8 * B + B
    assert microbatch_bytes(given) == microbatch_bytes(given.to(torch.device("meta"))) == wanted
    assert state_bytes(1000) == 20_000  # float32: weight, gradient, two moments, EMA
    assert state_bytes(1000, averages=2) == 28_000  # two post-hoc EMAs
    assert state_bytes(1000, 8) == 2500
    assert state_bytes(3, 64) == 1


def trunk_and_microbatch(name: str, folder: Path) -> tuple[nn.Module, Objective, Microbatch]:
    """A real trunk of a tiny configuration and its microbatch; large enough for single numbers not to matter."""
    own = {
        "image": ["streams.video=null", "streams.audio=null", "streams.image.batch=32"],
        "video": ["streams.image=null", "streams.audio=null", "streams.video.batch=16"],
        "sit": ["streams.image.batch=32"],
        "clip": ["streams.clip.batch=16"],
    }[name]
    if name == "clip":
        config = several(folder, *own)
    else:
        config = load_config(CONFIG.with_name("tiny_sit.yaml") if name == "sit" else CONFIG, own)
    assembly = Assembly(config, folder)
    open_data(assembly)
    (stream,) = config.streams
    given = assembly.preprocess(first_batch(assembly.dataset, stream))
    return assembly.trunk, assembly.objective, given


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["image", "video", "sit", "clip"])
def test_the_count_is_what_the_allocator_gives_out(name, precision, tmp_path):
    trunk, objective, given = trunk_and_microbatch(name, tmp_path)
    counted = saved_bytes(objective, trunk, given, precision, "cpu")
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        assert sum(kept_by_forward(objective, trunk, given)) == pytest.approx(counted, abs=64)
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),  # anew: it remembers cast weights
        profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen,
    ):
        terms = objective(trunk, trunk, given.batch, given.drawn, given.counts, given.targets)
    alive = sum(event.self_cpu_memory_usage for event in seen.key_averages())  # given out, and not given back
    assert counted == pytest.approx(alive, rel=0.03)
    del terms


@pytest.mark.parametrize(("name", "precision"), [("image", "fp32"), ("sit", "bf16")])
def test_blocks_that_are_computed_again_keep_what_they_take_in(name, precision, tmp_path):
    """Against the allocator: what torch's checkpoints really keep, and how much more lies there at the most."""
    trunk, objective, given = trunk_and_microbatch(name, tmp_path)
    whole = saved_bytes(objective, trunk, given, precision, "cpu")
    recompute(trunk, 1)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        kept, again = kept_by_forward(objective, trunk, given)
    assert saved_bytes(objective, trunk, given, precision, "cpu") == pytest.approx(kept + again, rel=1e-3)
    assert kept + again < 0.8 * whole
    with (
        profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen,
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),  # leaves no cast weights behind
    ):
        terms = objective(trunk, trunk, given.batch, given.drawn, given.counts, given.targets)
    alive = sum(event.self_cpu_memory_usage for event in seen.key_averages())
    assert kept == pytest.approx(alive, rel=0.03)
    del terms
    recompute(trunk, 2)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        assert kept < kept_by_forward(objective, trunk, given)[0] < whole


def test_bf16_and_a_larger_batch_count_and_the_trunk_stays_as_it_is(tmp_path):
    trunk, objective, given = trunk_and_microbatch("image", tmp_path)
    before = {name: value.clone() for name, value in trunk.state_dict().items()}
    sizes = [saved_bytes(objective, trunk, given, precision, "cpu") for precision in ("fp32", "bf16")]
    assert sizes[1] < sizes[0]
    assert saved_bytes(objective, trunk, given, "bf16", "cuda") > sizes[1]  # norms in float32
    assert saved_bytes(objective, trunk, given, "fp32", "cuda") == sizes[0]
    assert all(torch.equal(value, before[name]) for name, value in trunk.state_dict().items())
    assert all(parameter.grad is None for parameter in trunk.parameters())


def test_casts_of_cuda():
    listed = Path(torch.__file__).parent / "include" / "ATen" / "autocast_mode.h"
    if listed.is_file():
        text = listed.read_text().split("AT_FORALL_FP32(_)")[1].split("AT_FORALL_FP32_SET")[0]
        assert all(f"_({name})" in text for name in memory.FLOAT32_ON_CUDA - {"rms_norm"})  # which is newer
    x, weight = torch.randn(2, 4, dtype=torch.bfloat16), torch.randn(4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert functional.layer_norm(x, (4,)).dtype == torch.bfloat16
        with memory._Float32OnCuda():
            for result in (
                functional.layer_norm(x, normalized_shape=(4,)),
                functional.rms_norm(x, (4,)),
                functional.cosine_similarity(x, x, dim=-1),
            ):
                assert result.dtype == torch.float32
            assert functional.linear(functional.layer_norm(x, (4,)), weight).dtype == torch.bfloat16


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_count_is_what_cuda_gives_out(precision, tmp_path):
    trunk, objective, given = trunk_and_microbatch("image", tmp_path)
    counted = saved_bytes(objective, trunk, given, precision, "cuda")
    device = torch.device("cuda")
    trunk, moved = trunk.to(device), given.to(device)
    before = torch.cuda.memory_allocated()
    with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
        terms = objective(trunk, trunk, moved.batch, moved.drawn, moved.counts, moved.targets)
    assert torch.cuda.memory_allocated() - before == pytest.approx(counted, rel=0.1)
    del terms
