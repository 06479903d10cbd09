"""What a step keeps in memory: by hand, against what the allocator really gave out, and as CUDA casts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from configs.assembly import Assembly
from configs.build import build_trainer
from configs.load import load_config
from core.objective import Objective
from core.training.loader import Microbatch
from core.training.optim import OptimizerConfig
from core.trunk.recompute import recompute
from core.types import FeatureLayers, TokenBatch, TrunkOutput
from tests.tools.test_flops import B, C, N, microbatch
from tests.tools.test_standins import several
from tests.tools.tiny import CONFIG
from tools.dry_run import memory
from tools.dry_run.memory import kept_by_forward, microbatch_bytes, saved_bytes
from tools.dry_run.plan import first_batch
from tools.dry_run.standins import open_data
from tools.dry_run.state import state_bytes


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


class Layers(nn.Module):
    """A block of 80 x 100 weights, and a layer of 2000 with 20 biases."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(100, 80, bias=False)])
        self.out = nn.Linear(100, 20)


def test_a_state_by_hand():
    """Float32: weight, gradient, two moments, EMA; what is frozen has its weight alone, in its own type."""
    model = Layers()
    assert state_bytes(model, OptimizerConfig()) == {
        "trained weights": 40_080,
        "gradients": 40_080,
        "Adam moments": 80_160,
        "EMA teacher": 40_080,
    }
    assert state_bytes(model, OptimizerConfig(), averages=2)["2 post-hoc EMAs"] == 80_160
    assert state_bytes(model, OptimizerConfig(kind="muon"))["Muon and Adam moments"] == 4 * 8000 + 8 * 2020
    # A byte for each of the 8000, twice, with 32 scales of 256 numbers; the smaller ones as Adam has them.
    assert state_bytes(model, OptimizerConfig(kind="adamw8bit"))["8-bit Adam moments"] == 2 * (8000 + 4 * 32) + 8 * 2020
    model.blocks.requires_grad_(False)
    model.blocks.bfloat16()
    assert state_bytes(model, OptimizerConfig()) == {
        "frozen weights": 16_000,
        "trained weights": 8080,
        "gradients": 8080,
        "Adam moments": 16_160,
        "EMA teacher": 8080,
    }


def test_the_state_of_adapters_is_what_their_trainer_holds(tmp_path):
    """Weights, gradients, moments and teacher of a run of one step, each tensor once."""
    pytest.importorskip("peft", reason="makes the adapters")
    given = ["training.steps=1", "training.adapter={rank: 2}", f"run={tmp_path / 'run'}", "streams.audio=null"]
    config = load_config(CONFIG, given)
    trainer = build_trainer(config, tmp_path)
    trainer.fit()
    teacher = {id(each): each.nbytes for each in trainer.teacher.parameters()}
    student = {id(each): each.nbytes for each in trainer.student.parameters()}
    moments = sum(
        value.nbytes for slots in trainer.optimizer.state.values() for name, value in slots.items() if name != "step"
    )
    gradients = sum(each.grad.nbytes for each in trainer.student.parameters() if each.grad is not None)
    counted = state_bytes(trainer.student, config.training.optimizer)
    assert counted["frozen weights"] + counted["trained weights"] == sum(student.values())
    assert counted["gradients"] == gradients
    assert counted["Adam moments"] == moments
    assert counted["EMA teacher"] == sum(size for key, size in teacher.items() if key not in student)


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
