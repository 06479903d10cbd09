"""Adapters: where they are, what is trained, that one base serves student and teacher, and what peft's switch does."""

from __future__ import annotations

import copy

import pytest
import torch

from core.errors import ConfigError
from core.keys import generator
from core.training.adapter import AdapterConfig, adapt, train_only
from core.training.ema import make_teacher, update_teacher
from core.training.optim import OptimizerConfig, build_optimizer
from core.trunk.context import ContextConfig
from core.trunk.foreign.lora import adapters, merged
from core.trunk.mmdit import MMDiT, MMDiTConfig
from core.trunk.projectors import ProjectorSpec
from core.types import Context, FeatureLayers, NoiseLevels, Segment, TokenBatch

B, L = 2, 5
RANDOM = torch.Generator().manual_seed(0)
BATCH = TokenBatch(
    (Segment("image", torch.zeros(B, L, 4), torch.zeros(1, L, 3, dtype=torch.int64)),),
    Context(torch.zeros(B, dtype=torch.bool), label=torch.tensor([0, 1])),
)
NOISY = (torch.randn(B, L, 4, generator=RANDOM),)
LEVELS = NoiseLevels(torch.rand(B, 2, generator=RANDOM), torch.randint(0, 2, (B, L), generator=RANDOM))


def made() -> MMDiT:
    context = ContextConfig(kind="labels", num_classes=2)
    shape = {"width": 24, "heads": 2, "double_blocks": 1, "single_blocks": 2, "mlp_ratio": 1.0}
    trunk = MMDiT(MMDiTConfig(**shape, channels={"image": 4}, context=context), projectors={"teacher": ProjectorSpec()})
    with torch.no_grad():
        for name, parameter in trunk.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator("weights", name)) * 0.2)
    return trunk


def velocity(trunk: MMDiT) -> torch.Tensor:
    return trunk(NOISY, LEVELS, BATCH).velocity[0]


def loss(trunk: MMDiT) -> torch.Tensor:
    found = trunk(NOISY, LEVELS, BATCH, FeatureLayers(projected={"teacher": 2}))
    return found.velocity[0].square().mean() + found.projected["teacher"].square().mean()


def test_weights_that_are_not_trained_are_one_tensor_of_student_and_teacher():
    student = made()
    train_only(student, ["single_blocks.1", "*.norm.scale"])
    teacher = make_teacher(student)
    frozen = {name for name, parameter in student.named_parameters() if not parameter.requires_grad}
    assert "double_blocks.0.media.qkv.weight" in frozen
    assert not frozen & {"single_blocks.1.linear1.weight", "double_blocks.0.text.norm.scale", "projector.linear1.bias"}
    theirs = dict(teacher.named_parameters())
    for name, parameter in student.named_parameters():
        assert (theirs[name] is parameter) == (name in frozen)
    before = {name: parameter.clone() for name, parameter in student.named_parameters()}
    with torch.no_grad():
        for parameter in student.parameters():
            if parameter.requires_grad:
                parameter.add_(1.0)
    update_teacher(teacher, student, 0.75)
    for name, parameter in teacher.named_parameters():
        torch.testing.assert_close(parameter, before[name] + (0.0 if name in frozen else 0.25))
    with pytest.raises(ConfigError, match=r"'single_block' fits no parameter; .*mean: 'single_blocks'"):
        train_only(student, ["single_block"])


def test_rates_are_factors_of_the_learning_rate():
    trunk = made()
    config = OptimizerConfig(lr=1e-3, rates={"projector": 5e-4, "*_blocks.*": 2e-3})
    groups = build_optimizer(config, trunk).param_groups
    rates = {id(parameter): group["rate"] for group in groups for parameter in group["params"]}
    for name, parameter in trunk.named_parameters():
        wanted = 0.5 if name.startswith("projector.") else 2.0 if "_blocks." in name else 1.0
        assert rates[id(parameter)] == pytest.approx(wanted)
    with pytest.raises(ConfigError, match="'adapter' fits nothing that is trained"):
        build_optimizer(OptimizerConfig(rates={"adapter": 1.0}), trunk)


class TestLora:
    @pytest.fixture(autouse=True)
    def _peft(self):
        pytest.importorskip("peft", reason="the adapters are peft's")

    def test_it_starts_as_the_network_and_trains_adapters_and_projector_alone(self):
        plain, trunk = made(), made()
        state = torch.get_rng_state()
        chosen = adapt(trunk, AdapterConfig(rank=2, alpha=6.0), seed=1)
        assert torch.equal(state, torch.get_rng_state())
        assert "single_blocks.1.linear2" in chosen
        assert "double_blocks.0.text.mlp.linear1" in chosen
        assert not any("modulation" in name or "context" in name for name in chosen)
        with torch.no_grad():
            torch.testing.assert_close(velocity(trunk), velocity(plain), atol=1e-6, rtol=0)
        trained = {name for name, parameter in trunk.named_parameters() if parameter.requires_grad}
        assert all("lora_" in name or name.startswith("projector.") for name in trained)
        again = made()
        adapt(again, AdapterConfig(rank=2), seed=1)
        assert all(torch.equal(a, again.state_dict()[name]) for name, a in trunk.state_dict().items())

    def test_steps_move_the_student_and_the_teacher_follows_in_float32_on_one_base(self):
        trunk = made()
        adapt(trunk, AdapterConfig(layers=["*.qkv", "single_blocks"], rank=2, base="bf16"), seed=1)
        teacher = make_teacher(trunk)
        kept = dict(teacher.named_parameters())
        for name, parameter in trunk.named_parameters():
            low_rank, head = "lora_" in name, name.startswith("projector.")
            assert parameter.dtype == (torch.float32 if low_rank or head else torch.bfloat16)
            assert (kept[name].data_ptr() == parameter.data_ptr()) == (not low_rank and not head)
        optimizer = build_optimizer(OptimizerConfig(lr=1e-2), trunk)
        for _ in range(3):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss(trunk).backward()
            assert all(p.grad is not None for p in trunk.parameters() if p.requires_grad)
            optimizer.step()
            update_teacher(teacher, trunk, 0.999)
        moved = [name for name, p in teacher.named_parameters() if "lora_B" in name and p.abs().max() > 0]
        assert moved
        assert all(p.abs().max() < 1e-3 for name, p in teacher.named_parameters() if "lora_B" in name)

    def test_a_teacher_pass_between_forward_and_backward_leaves_gradients_whole(self):
        """peft's own way, one network with two adapters, loses all of them without a word."""
        import peft
        from peft.tuners.tuners_utils import BaseTunerLayer

        settings = peft.LoraConfig(r=2, target_modules=["qkv"], lora_dropout=0.0)
        switched = peft.inject_adapter_in_model(settings, made(), adapter_name="student")
        peft.inject_adapter_in_model(settings, switched, adapter_name="teacher")
        layers = [module for module in switched.modules() if isinstance(module, BaseTunerLayer)]

        def switch(name: str) -> None:
            for module in layers:
                module.set_adapter(name)

        switch("student")
        value = velocity(switched).square().mean()
        switch("teacher")
        with torch.no_grad():
            velocity(switched)
        value.backward()
        assert all(p.grad is None for name, p in switched.named_parameters() if "lora_" in name and ".student." in name)

        trunk = made()
        adapt(trunk, AdapterConfig(rank=2), seed=1)
        teacher, alone = make_teacher(trunk), copy.deepcopy(trunk)
        value = loss(trunk)
        with torch.no_grad():
            velocity(teacher)
        value.backward()
        loss(alone).backward()
        compared = 0
        for ours, theirs in zip(trunk.parameters(), alone.parameters(), strict=True):
            if ours.requires_grad:
                assert torch.equal(ours.grad, theirs.grad)
                compared += bool(ours.grad.any())
        assert compared > 5

    @torch.no_grad()
    def test_merged_weights_give_the_same_velocity(self):
        trunk = made()
        config = AdapterConfig(rank=2, alpha=6.0)
        adapt(trunk, config, seed=1)
        for name, parameter in trunk.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator(name)) * 0.2)
        assert len(adapters(trunk.state_dict())) == 2 * 4 + 2 * 2
        whole = made()
        whole.load_state_dict(merged(trunk.state_dict(), config.scale))
        assert (velocity(whole) - velocity(made())).abs().max() > 0.1
        torch.testing.assert_close(velocity(whole), velocity(trunk), atol=2e-5, rtol=0)

    def test_wrong_settings_are_named(self):
        assert AdapterConfig(rank=0, alpha=0, base="int4").problems() == [
            "rank: 0 must be at least 1",
            "alpha: 0 must be above 0",
            "base: 'int4' is not one of fp32, bf16.",
        ]
        with pytest.raises(ConfigError, match=r"'\*.to_q' fits no linear layer of a block; there are double_blocks"):
            adapt(made(), AdapterConfig(layers=["*.to_q"]), seed=1)
