"""FLOPs of a training step: against a count by hand, and what each method adds."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from autoencoders.base import Whitening
from configs.build import build_dataset, build_streams, class_names
from configs.load import load_config
from configs.networks import build_adapters, build_trunk, projector_specs
from core.alignment.ema_teacher import EmaTeacher, EmaTeacherConfig
from core.alignment.terms import build_alignment
from core.keys import generator
from core.noising import Draws
from core.objective import Objective
from core.training.feed import Microbatch
from core.trunk.projectors import TEACHER, ProjectorSpec
from core.trunk.sit import SiT, SiTConfig
from core.types import Context, NoiseLevels, Segment, TokenBatch
from modalities.preprocess import DevicePreprocess
from tests.tools.tiny import CONFIG
from tools.flops import step_flops, without_storage
from tools.plan import first_batch

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
    return Microbatch("image", batch, Draws((noise,), student, teacher), {"image": float(B * N)})


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
    config = load_config(CONFIG, [f"method={method}", "streams.video.condition_on={first_frame: 0}"])
    config.streams.audio = None
    adapters = build_adapters(config, tmp_path)
    streams = build_streams(config, adapters, tmp_path)
    whitening = {name: Whitening(torch.zeros(a.channels), torch.ones(a.channels)) for name, a in adapters.items()}
    labels = class_names(streams)
    with torch.device("meta"):
        trunk = build_trunk(config, adapters, labels, projector_specs(config, {}))
    dataset = build_dataset(config, streams, labels)
    objective = Objective(build_alignment(config.alignment, trunk.depth))
    for name in ("image", "video"):
        found = step_flops(objective, trunk, first_batch(dataset, name))
        assert found["student"] > 0
        assert found["encoders"] == 0
        if method in ("sra", "self_flow", "self_flow_as"):
            assert 0 < found["teacher"] < found["student"] / 3  # it leaves early
        else:
            assert found["teacher"] == 0


class Adapter:
    has_weights = False


def prepared(encoder: torch.nn.Module, media: torch.Tensor) -> tuple[dict[str, int], int]:
    """What is counted of an encoder in a step, and what it costs when it really runs."""
    plan = DevicePreprocess({"image": Adapter()}, {}, {"image": {"image_a": encoder}})
    plain = microbatch()
    given = Microbatch("image", plain.batch, plain.draws, plain.counts, media=media)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        encoder(media)
    return step_flops(Objective(), SiT(SIT), given, plan), counter.get_total_flops()


@pytest.mark.parametrize("name", ["dinov2", "siglip2 naflex"])
def test_encoders_count_with_their_attention_even_those_that_look_at_values(name, tmp_path):
    pytest.importorskip("transformers", reason="transformers is not installed")
    from modalities.encoders import EncoderConfig, build_encoder
    from tests.modalities.encoder_models import MAKERS, media, save

    folder = str(save(MAKERS[name](), tmp_path / "weights"))
    encoder = build_encoder(EncoderConfig(name.split()[0], folder), "image", (64, 64), (1, 4, 4))
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    found, real = prepared(encoder, media(B, 3, 64, 64))
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
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        autoencoder.encode(media)
    plain = microbatch()
    given = Microbatch("image", plain.batch, plain.draws, plain.counts, media=media)
    plan = DevicePreprocess({"image": Weights()}, {"image": Whitening(torch.zeros(C), torch.ones(C))}, {})
    assert step_flops(Objective(), SiT(SIT), given, plan)["encoders"] == counter.get_total_flops() > 0
    assert type(next(autoencoder.load().parameters())) is torch.nn.Parameter
