"""FLOPs of a training step: against a count by hand, and what each method adds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from autoencoders.base import LatentNormalization
from configs.assembly import Assembly
from configs.load import load_config
from core.alignment.ema_teacher import EmaTeacher, EmaTeacherConfig
from core.keys import generator
from core.noising import NoiseSample
from core.objective import Objective, total_loss
from core.training.adapter import AdapterConfig, adapt, train_only
from core.training.loader import Microbatch
from core.trunk.context import ContextConfig
from core.trunk.mmdit import MMDiT, MMDiTConfig
from core.trunk.projectors import TEACHER, ProjectorSpec
from core.trunk.recompute import recompute
from core.trunk.sit import SiT, SiTConfig
from core.types import Context, NoiseLevels, Segment, TokenBatch
from modalities.conditioning.conditions import RawCondition
from modalities.data.batches import RawBatch, RawPart
from modalities.data.preprocess import DevicePreprocess
from modalities.streams import Part
from tests.tools.tiny import CONFIG
from tools.dry_run.flops import step_flops, without_storage
from tools.dry_run.plan import first_batch, leave_empty

B, N, C, D, LAYERS = 3, 16, 16, 32, 5
SIT = SiTConfig(width=D, depth=LAYERS, heads=2, grid=4, channels=C, num_classes=6)


def microbatch(levels: int = 2, separate: tuple[int, ...] | None = None) -> Microbatch:
    draw = generator("flops")
    ids = torch.tensor([[[0, i // 4, i % 4] for i in range(N)]])
    context = Context(torch.zeros(B, dtype=torch.bool), torch.arange(B))
    x0, noise = (torch.randn(B, N, C, generator=draw) for _ in range(2))
    index = None
    if levels == 2:
        index = torch.zeros(B, N, dtype=torch.long)
        index[:, : N // 4] = 1
    student = NoiseLevels(torch.rand(B, levels, generator=draw), index, separate)
    teacher = NoiseLevels(student.values[:, :1])
    batch = TokenBatch((Segment("image", x0, ids),), context, ("a", "b", "c"))
    return Microbatch("image", batch, NoiseSample((noise,), student, teacher), {"image": float(B * N)})


def by_hand(levels: int, blocks: int = LAYERS, groups: tuple[int, ...] = (N,), whole: bool = True) -> int:
    """2 FLOPs for each multiplication of a forward of the SiT above."""
    attention = 2 * D * sum(length**2 for length in groups)  # scores and their product with the values
    block = levels * D * 6 * D + N * (3 * D * D + D * D + 2 * 4 * D * D) + attention
    ends = N * C * D + levels * (256 * D + D * D)  # tokens and times in
    if whole:
        ends += levels * D * 2 * D + N * D * 2 * C  # the head has a second, unused half
    return 2 * B * (ends + blocks * block)


@pytest.mark.parametrize("levels", [1, 2])
def test_a_forward_is_what_it_is_by_hand_with_attention_counted_once(levels):
    found = step_flops(Objective(), SiT(SIT), microbatch(levels))
    assert found == {"student": 3 * by_hand(levels), "teacher": 0, "encoders": 0, "total": 3 * by_hand(levels)}


def test_the_teacher_runs_forward_once_to_its_layer_and_the_projector_belongs_to_the_student():
    def counted(**layers: int) -> dict[str, int]:
        objective = Objective([EmaTeacher(EmaTeacherConfig(student_layer=1, **layers), LAYERS)])
        return step_flops(objective, SiT(SIT, projectors={TEACHER: ProjectorSpec()}), microbatch())

    for layer in (2, 5):
        found = counted(teacher_layer=layer)
        assert found["teacher"] == by_hand(1, blocks=layer, whole=False)
        assert found["student"] == 3 * (by_hand(2) + 2 * B * N * (D * 2 * D + 2 * D * D))
        assert found["total"] == found["student"] + found["teacher"]


def test_separated_attention_costs_the_squares_of_its_groups():
    found = step_flops(Objective(), SiT(SIT), microbatch(separate=(N - N // 4, N // 4)))
    assert found["student"] == 3 * by_hand(2, groups=(12, 4))
    assert found["student"] < 3 * by_hand(2)


def trained_in_part(what: str) -> MMDiT:
    """A trunk whose weights are frozen, but for adapters or one block, with a projector."""
    shape = MMDiTConfig(width=D, heads=2, double_blocks=1, single_blocks=3, channels={"image": C})
    trunk = MMDiT(
        replace(shape, context=ContextConfig(kind="labels", num_classes=6)), projectors={TEACHER: ProjectorSpec()}
    )
    if what == "block":
        train_only(trunk, ["single_blocks.1"])
    else:
        pytest.importorskip("peft", reason="LoRA needs peft")
        adapt(trunk, AdapterConfig(rank=4, layers=[] if what == "LoRA" else ["single_blocks"]), seed=0)
    return trunk


@pytest.mark.parametrize(("what", "every"), [("LoRA", 0), ("LoRA on single blocks", 1), ("block", 0)])
def test_no_gradient_of_frozen_weights_is_counted(what, every):
    """A step on real tensors, counted by torch: of its backward pass what runs."""
    objective = Objective([EmaTeacher(EmaTeacherConfig(student_layer=2, teacher_layer=3), 4)])
    trunk, batch = trained_in_part(what), microbatch()
    recompute(trunk, every)
    counted = step_flops(objective, trunk, batch)
    recompute(trunk, 0)

    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        losses = objective(trunk, trunk, batch.batch, batch.drawn, batch.counts)
        total_loss(losses).backward()
    assert counted["student"] + counted["teacher"] == counter.get_total_flops()
    forward = step_flops(Objective(), trunk.requires_grad_(True), batch)["student"] / 3
    assert 1 < counted["student"] / forward < 2.6  # 3 and more of the projector's, where all is trained
    assert bool(counted.get("recomputed")) == bool(every)


def test_the_live_trunk_is_not_touched():
    trunk = SiT(SIT, projectors={TEACHER: ProjectorSpec()})
    before = {name: (value.data_ptr(), value.clone()) for name, value in trunk.state_dict().items()}
    step_flops(Objective(), trunk, microbatch())
    for name, value in trunk.state_dict().items():
        assert value.data_ptr() == before[name][0]
        assert torch.equal(value, before[name][1])
        assert value.device.type == "cpu"
    empty = without_storage(trunk)
    assert {value.device.type for value in empty.state_dict().values()} == {"meta"}
    assert all(isinstance(parameter, torch.nn.Parameter) for parameter in empty.parameters())


@pytest.mark.parametrize("method", ["flow_matching", "sra", "layersync", "dispersive", "self_flow", "self_flow_as"])
def test_only_methods_with_a_teacher_pay_for_one(method, tmp_path):
    config = load_config(CONFIG, [f"method={method}", "streams.video.modes={first_frame: 0}"])
    del config.streams["audio"]
    assembly = Assembly(config, tmp_path)
    leave_empty(assembly)
    for name in ("image", "video"):
        batch = first_batch(assembly.dataset, name)
        found = step_flops(assembly.objective, assembly.trunk, batch, assembly.preprocess)
        assert found["student"] > 0
        assert found["encoders"] == 0
        if method in ("sra", "self_flow", "self_flow_as"):
            assert 0 < found["teacher"] < found["student"] / 3  # it leaves early
        else:
            assert found["teacher"] == 0


def test_segments_add_up_but_for_their_attention_to_each_other():
    """Of one, two and three parts of N tokens the work on single tokens grows evenly, and attention with the square."""
    settings = {"size": "tiny", "width": D, "heads": 2, "double_blocks": 2, "single_blocks": LAYERS - 2}
    config = MMDiTConfig(**settings, channels={"image": C}, context=ContextConfig("labels", num_classes=6))
    trunk, one, found = MMDiT(config), microbatch(), []
    (segment,), (noise,) = one.batch.segments, one.drawn.noise
    for count in (1, 2, 3):
        names = [f"part {number}" for number in range(count)]
        student = replace(one.drawn.student, index=one.drawn.student.index.repeat(1, count))
        batch = replace(one.batch, segments=tuple(replace(segment, part=name) for name in names))
        counts = dict.fromkeys(names, float(B * N))
        given = replace(
            one, batch=batch, drawn=NoiseSample((noise,) * count, student, one.drawn.teacher), counts=counts
        )
        found.append(step_flops(Objective(), trunk, given)["student"])
    assert found[2] - 2 * found[1] + found[0] == 3 * 2 * B * LAYERS * 2 * D * 2 * N**2


class Adapter:
    modality, has_weights = "image", False


def prepared(adapter: Adapter, encoders: dict, media: torch.Tensor, latents: torch.Tensor | None) -> dict[str, int]:
    """What is counted of a step whose batch is completed by frozen networks."""
    plain = microbatch()
    (segment,), (noise,) = plain.batch.segments, plain.drawn.noise
    part = RawPart("image", noise, media, latents)
    condition, drawn = RawCondition(plain.batch.context), plain.drawn
    raw = RawBatch("image", plain.keys, (part,), condition, drawn.student, drawn.teacher, None, plain.counts)
    parts = {"image": {"image": Part(adapter, segment.ids[0])}}
    normalization = {"image": LatentNormalization(torch.zeros(C), torch.ones(C))}
    return step_flops(Objective(), SiT(SIT), raw, DevicePreprocess(parts, normalization, {"image": encoders}))


def really(run: Callable[[], object]) -> int:
    """FLOPs of something that runs."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize("name", ["dinov2", "siglip2 naflex"])
def test_encoders_count_with_their_attention_even_those_that_look_at_values(name, tmp_path):
    pytest.importorskip("transformers", reason="transformers is not installed")
    from modalities.targets import EncoderConfig, build_encoder
    from tests.modalities.targets.encoder_models import MAKERS, media, save

    folder = str(save(MAKERS[name](), tmp_path / "weights"))
    encoder = build_encoder(EncoderConfig(name.split()[0], folder), "image", (64, 64), (1, 4, 4))
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    seen = media(B, 3, 64, 64)
    real = really(lambda: encoder(seen))
    found = prepared(Adapter(), {"image_a": encoder}, seen, torch.zeros(B, N, C))
    assert found["encoders"] == real > 0
    assert found["total"] == found["student"] + real
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())
    assert all(type(value) is torch.nn.Parameter for value in encoder.parameters())


def test_an_autoencoder_with_weights_counts_as_it_encodes(tmp_path):
    pytest.importorskip("diffusers", reason="diffusers is not installed")
    from tests.autoencoders.small import pretrained, save

    autoencoder = pretrained("sd_vae", save("sd_vae", tmp_path / "vae"))

    class Weights(Adapter):
        has_weights = True

        def load_weights(self):
            return autoencoder.load()

        def encode(self, media, noise):
            return autoencoder.encode(media, noise).repeat(1, 1, C // 4)  # (B, N, C)

    media = torch.zeros(B, 3, 32, 32)
    real = really(lambda: autoencoder.encode(media))
    assert prepared(Weights(), {}, media, None)["encoders"] == real > 0
    assert type(next(autoencoder.load().parameters())) is torch.nn.Parameter
