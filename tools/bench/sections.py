"""The sections of the report: what is measured against what. Every section returns rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from core.errors import SelfFlowError
from core.keys import generator
from core.objective import total_loss
from core.sampling.sampler import SamplerConfig, sample
from core.training.ema import update_teacher
from core.training.trainer import Trainer
from core.trunk.mmdit import MMDiT
from core.trunk.sit import SiT
from core.types import NoiseLevels, TrunkOutput
from tools.bench import measure
from tools.bench.measure import Row, Times, median_row, rate_row, ratio_row, side_by_side
from tools.bench.peer import Peer, increments, training_step
from tools.bench.sides import (
    HEADS,
    Setup,
    build_sit,
    build_trainer,
    class_context,
    make_microbatch,
    microbatch_of,
    sit_config,
    step_of,
    text_context,
    trunk_config,
)

LOSSES_AGREE, SAMPLES_AGREE = 1e-4, 2e-4  # largest differences in float32, ours against the official network
GUIDANCE, HIGH = 2.0, 0.7  # scale, and the published end of the interval
GIB = 2**30


@contextmanager
def sit_trainer(setup: Setup, method: str = "self_flow") -> Iterator[Trainer]:
    """A trainer of the SiT on one fixed microbatch, with a run folder that goes away."""
    microbatch = make_microbatch(setup, method, sit_config(setup).channels, class_context(setup))
    with TemporaryDirectory() as scratch:
        yield build_trainer(setup, build_sit(setup), method, microbatch, Path(scratch))


def step_rows(setup: Setup, peer: Peer | None, peak_tflops: float | None = None) -> list[Row]:
    """A Self-Flow training step against our own flow-matching step, and against a plain loop on the official class."""
    rows = [check_losses(setup, peer)] if peer else []
    with sit_trainer(setup) as ours, sit_trainer(setup, "flow_matching") as plain:
        sides = {"self_flow": step_of(ours), "flow_matching": step_of(plain)}
        if peer:
            network = peer.build(build_sit(setup), setup.device)
            sides["official"] = training_step(setup, network, microbatch_of(ours))
        flops = step_flops(ours, SiT, sit_config(setup))
        times = side_by_side(sides, setup.rounds, setup.warmup, setup.device, setup.clock)
    names = {"self_flow": "Self-Flow", "flow_matching": "flow matching", "official": "official class, Self-Flow"}
    rows += [rate_row("step", names[side], times, side, setup.batch, "images/s") for side in sides]
    rows.append(ratio_row("step", "time, Self-Flow / flow matching", times, "self_flow", "flow_matching"))
    if peer:
        rows.append(ratio_row("step", "throughput, Self-Flow / official class", times, "official", "self_flow"))
    return rows + share_rows("step", flops, times, "self_flow", peak_tflops)


def share_rows(section: str, flops: int, times: Times, side: str, peak_tflops: float | None, of: str = "") -> list[Row]:
    """The floating-point rate of a step, and its share of the peak."""
    rates, own = [flops / seconds / 1e12 for seconds in times[side]], {side: times[side]}
    rows = [median_row(section, f"{of}model FLOPs per second", rates, "TFLOP/s", own)]
    if peak_tflops:
        used = [100 * rate / peak_tflops for rate in rates]
        rows.append(median_row(section, f"{of}model FLOP utilization of {peak_tflops:.3g} TFLOP/s", used, "%", own))
    return rows


def check_losses(setup: Setup, peer: Peer) -> Row:
    """Losses of two steps from the same weights, so that the second depends on gradients, AdamW and EMA.

    Raises:
        SelfFlowError: they differ, and a comparison of times would mean nothing.
    """
    setup = replace(setup, precision="fp32", compile=False)
    with sit_trainer(setup) as trainer:
        microbatch = microbatch_of(trainer)
        ours, theirs = step_of(trainer), training_step(setup, peer.build(build_sit(setup), setup.device), microbatch)
        worst = max(abs(ours() - theirs()) for _ in range(2))
    return _agreement("step", "largest difference of the losses of two steps, float32", worst, LOSSES_AGREE)


def _agreement(section: str, what: str, worst: float, allowed: float) -> Row:
    if not worst <= allowed:
        raise SelfFlowError(f"{section}: {what}, ours against the official network: {worst:.2g}, allowed {allowed:g}")
    return Row(section, f"{what} (allowed {allowed:g})", worst, "")


def sampling_rows(setup: Setup, peer: Peer | None) -> list[Row]:
    """The published SDE without guidance, with guidance on every step, and with guidance in an interval."""
    cases = {
        "no guidance": (1.0, 1.0),
        "guidance on all steps": (GUIDANCE, 1.0),
        f"guidance in 0..{HIGH}": (GUIDANCE, HIGH),
    }
    trunk = build_sit(setup).to(setup.device).eval().requires_grad_(False)
    network = peer.build(trunk, setup.device).eval().requires_grad_(False) if peer else None
    if setup.compile:
        for side in filter(None, (trunk, network)):
            side.compile()
    batch = make_microbatch(setup, "self_flow", trunk.config.channels, class_context(setup)).batch.to(setup.device)
    shape = batch.segments[0].x0.shape
    noise = torch.randn(shape, generator=generator("bench", "sampling")).to(setup.device)

    def our_sampler(guidance: float, high: float, batch_invariant: bool):
        config = SamplerConfig(
            "sde", setup.steps, cfg_scale=guidance, cfg_interval=[0.0, high], batch_invariant=batch_invariant
        )

        def run():
            drawn = increments(shape, guidance != 1, setup.steps, seed=0)
            return sample(trunk, batch, (noise,), config, increments=lambda number: (drawn[number],))[0]

        return run

    rows = []
    for name, (guidance, high) in cases.items():
        sides = {"ours": our_sampler(guidance, high, batch_invariant=False)}
        if setup.device == "cpu":
            sides["ours, exact"] = our_sampler(guidance, high, batch_invariant=True)
        if peer:
            label = batch.context.label
            assert label is not None  # of `class_context`
            sides["official"] = peer.sampler(network, noise, label, setup.steps, guidance, high, seed=0)
            official = sides["official"]()
            worst = max(float((sides[side]() - official).abs().max()) for side in sides if side != "official")
            what = f"{name}: largest difference of the samples, float32"
            rows.append(_agreement("sampling", what, worst, SAMPLES_AGREE))
        with setup.autocast():
            times = side_by_side(sides, setup.rounds, setup.warmup, setup.device, setup.clock)
        evaluated = setup.batch * setup.steps
        rows += [rate_row("sampling", f"{name}, {side}", times, side, evaluated, "image steps/s") for side in sides]
        if peer:
            rows += [
                ratio_row("sampling", f"{name}: throughput, {side} / official", times, "official", side)
                for side in sides
                if side != "official"
            ]
    return rows


class Recorder(nn.Module):
    """Calls a network and keeps the last arguments and output."""

    arguments: tuple
    output: TrunkOutput

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, *arguments) -> TrunkOutput:
        self.arguments, self.output = arguments, self.network(*arguments)
        return self.output


class Answer(nn.Module):
    """Gives one output at once, whatever it is asked."""

    def __init__(self, output: TrunkOutput):
        super().__init__()
        self.output = output

    def forward(self, *_arguments) -> TrunkOutput:
        return self.output


def overhead_rows(setup: Setup) -> list[Row]:
    """What of the Trainer's step is not the two network passes: the student's forward and backward, the teacher's
    forward. Measured twice, as the rest after the passes alone, and as the sum of the other pieces timed directly."""
    with sit_trainer(setup) as trainer:
        student, teacher, objective = trainer.student, trainer.teacher, trainer.objective
        moved = microbatch_of(trainer).to(trainer.device)
        seen, target = Recorder(student), Recorder(teacher)
        with setup.autocast():
            total_loss(objective(seen, target, moved.batch, moved.drawn, moved.counts))
        answered = Answer(target.output)
        (layer,) = seen.output.projected
        assert seen.output.velocity is not None  # the student runs to its end
        velocity, projected = seen.output.velocity[0].detach(), seen.output.projected[layer].detach()

        def losses() -> tuple[torch.Tensor, torch.Tensor]:
            """Noising, losses and their gradients, with networks that answer at once."""
            leaves = velocity.clone().requires_grad_(), projected.clone().requires_grad_()
            output = TrunkOutput((leaves[0],), {}, {layer: leaves[1]})
            with setup.autocast():
                terms = objective(Answer(output), answered, moved.batch, moved.drawn, moved.counts)
                loss = total_loss(terms)
            loss.backward()
            first, second = (leaf.grad for leaf in leaves)
            assert first is not None  # of that loss
            assert second is not None
            return first, second

        gradients = losses()

        def passes():
            student.zero_grad(set_to_none=True)
            with setup.autocast():
                output = student(*seen.arguments)
                with torch.no_grad():
                    teacher(*target.arguments)
            torch.autograd.backward((output.velocity[0], output.projected[layer]), gradients)

        optimizer, ema = trainer.config.optimizer, trainer.config.ema
        pieces = {
            "noising, losses and their gradients": losses,
            "gradient norm and clip": lambda: nn.utils.clip_grad_norm_(student.parameters(), optimizer.clip),
            "AdamW": trainer.optimizer.step,
            "EMA": lambda: update_teacher(teacher, student, ema.decay),
        }
        sides = {"whole step": step_of(trainer), "network passes": passes, **pieces}
        times = side_by_side(sides, setup.rounds, setup.warmup, setup.device, setup.clock)

    def share(what: str, part: Sequence[float]) -> Row:
        percent = [100 * a / whole for a, whole in zip(part, times["whole step"], strict=True)]
        return median_row("overhead", what, percent, "% of a step", times)

    rest = [whole - alone for whole, alone in zip(times["whole step"], times["network passes"], strict=True)]
    together = [sum(seconds) for seconds in zip(*(times[name] for name in pieces), strict=True)]
    rows = [share("whole step less the two network passes", rest), share("all pieces below", together)]
    return rows + [share(name, times[name]) for name in pieces]


def trunk_rows(setup: Setup, name: str, text_tokens: int, peak_tflops: float | None) -> list[Row]:
    """A Self-Flow step of any trunk: tokens/s, floating-point rate, memory. Meant for a process of its own."""
    torch.set_num_threads(setup.threads)
    kind, config, channels = trunk_config(name, setup, text_tokens)
    with_text = bool(text_tokens) and kind is MMDiT
    context = text_context(setup, text_tokens) if with_text else class_context(setup)
    network = kind(config, projectors=HEADS)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    microbatch = make_microbatch(setup, "self_flow", channels, context)
    with TemporaryDirectory() as scratch:
        trainer = build_trainer(setup, network, "self_flow", microbatch, Path(scratch))
        flops = step_flops(trainer, kind, config)
        measure.forget_peak(setup.device)
        times = side_by_side({"step": step_of(trainer)}, setup.rounds, setup.warmup, setup.device, setup.clock)
    section = f"trunk {name}"
    what = f"batch {setup.batch} x {setup.tokens} tokens" + f" and {text_tokens} of text" * with_text
    return [
        Row(section, "parameters", parameters / 1e6, "M"),
        median_row(section, what, times["step"], "s/step", times),
        rate_row(section, what, times, "step", setup.batch * setup.tokens, "tokens/s"),
        Row(section, "model FLOPs of a step", flops / 1e12, "TFLOP"),
        *share_rows(section, flops, times, "step", peak_tflops),
        Row(section, "peak memory", measure.peak_memory(setup.device) / GIB, "GiB"),
    ]


def step_flops(trainer: Trainer, kind: type[SiT] | type[MMDiT], config: Any) -> int:
    """Matrix products and attention of a Self-Flow step: three times the student's forward pass, the backward pass
    counting twice, and the teacher's forward pass up to its layer.

    Counted on the meta device with one level per sample: modulation is for one row, expansion to tokens not work.
    """
    with torch.device("meta"):
        network = kind(config, projectors=HEADS)
    batch = microbatch_of(trainer).batch.to("meta")
    noisy = tuple(segment.x0 for segment in batch.segments)
    levels = NoiseLevels(torch.empty(batch.size, 1, device="meta"))
    (alignment,) = trainer.objective.terms
    student = measure.count_flops(lambda: network(noisy, levels, batch, alignment.feature_layers(())))
    teacher = measure.count_flops(lambda: network(noisy, levels, batch, alignment.teacher_feature_layers))
    return 3 * student + teacher
