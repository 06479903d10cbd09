"""Every method's loss against values recorded from its authors' code, with the inputs and draws of the recording.

The presets of the method table run on a trunk that returns the recorded outputs and features; nothing else is replaced.
Sources, and what differs on purpose: docs/fidelity.md. A recorded -cos is our 1 - cos.
"""

import pytest
import torch

import core.noising
from configs.methods import METHODS, method_alignment
from core.alignment.ema_teacher import EmaTeacherConfig
from core.alignment.layer_sync import LayerSyncConfig
from core.alignment.terms import AlignmentConfig, build_alignment
from core.noising import NoiseSample, NoisingConfig, draw_levels, picked, stack_levels
from core.objective import Objective, noised, total_loss
from core.schedule import TimestepConfig
from core.trunk.projectors import TEACHER, repa_head
from core.types import Context, NoiseLevels, Segment, TokenBatch, TrunkOutput
from tests.parity.common import golden, golden_json, image_batch, tiny_trunk, worst

LOSSES = golden_json("losses")
DEPTH = 28
EPOCH = 5004  # ImageNet in batches of 256, the last one dropped
ROUNDING = 1e-6  # worst seen of all comparisons below: 4.8e-7, on losses up to 5


def tensors(entry):
    """Nested lists of a recording -> tensors."""
    if isinstance(entry, dict):
        return {name: tensors(value) for name, value in entry.items()}
    return torch.tensor(entry) if isinstance(entry, list) else entry


def tokens(images):
    """(B, C, H, W) -> (B, H W / 4, 4 C), patches of 2 x 2."""
    return images.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)


class Recorded:
    """A trunk that returns what was recorded, and notes what it was given."""

    def __init__(self, velocity=None, raw=None, projected=None):
        self.output, self.calls = TrunkOutput(None if velocity is None else (velocity,), raw or {}, projected or {}), []

    def __call__(self, noisy, levels, batch, feature_layers):
        self.calls.append((noisy[0], levels, feature_layers))
        assert set(feature_layers.raw) <= set(self.output.raw)
        assert set(feature_layers.projected) <= set(self.output.projected)
        return self.output


def run(alignment, student, teacher, x0, x1, levels, teacher_levels=None, targets=None, step=0):
    """Named loss terms of a batch of image tokens."""
    ids = torch.zeros(1, x0.shape[1], 3, dtype=torch.long)
    batch = TokenBatch((Segment("image", x0, ids),), Context(torch.zeros(len(x0), dtype=torch.bool)))
    drawn = NoiseSample((x1,), levels, levels if teacher_levels is None else teacher_levels)
    objective = Objective(build_alignment(alignment, DEPTH))
    return objective(student, teacher, batch, drawn, {"image": float(x0[..., 0].numel())}, targets or {}, step)


def mean(term):
    return float(term.mean().detach())


def one_level(times):
    """(B,) or (B, 1, 1, 1) -> levels of a homogeneous plan."""
    return NoiseLevels(times.reshape(-1, 1))


def flow_of_each(velocity, x0, x1, levels):
    """(B,) flow loss of every sample, by the objective itself."""
    values = []
    for i in range(len(x0)):
        index = None if levels.index is None else levels.index[i : i + 1]
        rows = [part[i : i + 1] for part in (velocity, x0, x1)]
        single = NoiseLevels(levels.values[i : i + 1], index)
        values.append(run(AlignmentConfig(), Recorded(rows[0]), None, *rows[1:], single)["flow/image"].mean())
    return torch.stack(values)


@pytest.mark.parametrize("times", ["uniform", "lognormal"])
def test_repa(times):
    entry = tensors(LOSSES["REPA"])
    inputs, out = entry["inputs"], entry["outputs"][f"linear/{times}"]
    x0, x1, velocity = (tokens(v) for v in (inputs["images"], out["noise"], inputs["model_output"]))
    levels = one_level(out["time"])
    targets = inputs["zs"]  # of two encoders, 5 and 7 wide
    student = Recorded(velocity, projected=inputs["zs_tilde"])
    terms = run(method_alignment("repa"), student, None, x0, x1, levels, targets=targets)

    noisy, _, feature_layers = student.calls[0]
    assert feature_layers.projected == {"one": 8, "two": 8}  # --encoder-depth 8 of 28
    assert worst(noisy, tokens(out["model_input"])) < ROUNDING
    assert worst(flow_of_each(velocity, x0, x1, levels), out["denoising_loss_per_sample"]) < ROUNDING
    both = (mean(terms["align/one"]) + mean(terms["align/two"])) / 2
    assert both - 1 == pytest.approx(out["proj_loss"], abs=ROUNDING)
    assert float(total_loss(terms).detach()) - 0.5 == pytest.approx(out["total_with_coeff_0_5"], abs=ROUNDING)

    single = run(method_alignment("repa"), student, None, x0, x1, levels, targets={"one": targets["one"]})
    assert mean(single["align/one"]) - 1 == pytest.approx(entry["single_encoder"]["proj_loss"], abs=ROUNDING)
    assert single["align/one"].weight == 0.5


def test_repa_projector():
    entry = tensors(LOSSES["REPA_projector"])
    head = repa_head(4, 5, hidden=6)
    head.load_state_dict(entry["state"])
    assert worst(head(entry["x"]), entry["y"]) < ROUNDING


def scripted(monkeypatch, times, uniforms):
    """Makes core.noising draw these times and these uniform numbers, in order."""
    times, uniforms = iter(times), iter(uniforms)
    monkeypatch.setattr(core.noising, "sample_timesteps", lambda config, count, generator: next(times))
    monkeypatch.setattr(torch, "rand", lambda *size, generator: next(uniforms).reshape(size))


@pytest.fixture
def sra(monkeypatch):
    """The recorded draws through our noising plan: inputs, (x0, x1, velocity), levels of student and teacher."""
    inputs = tensors(LOSSES["SRA"]["inputs"])
    drawn = inputs["draws"]
    with monkeypatch.context() as patch:
        scripted(patch, drawn["time_uniform"].reshape(3, 1), drawn["gap_uniform"].reshape(3, 1))
        config = NoisingConfig(**METHODS["sra"]["noising"])
        pairs = [draw_levels(config, TimestepConfig(), 0.25, [4], torch.Generator()) for _ in range(3)]
    levels = [stack_levels(list(side)) for side in zip(*pairs, strict=True)]
    return inputs, [tokens(v) for v in (inputs["images"], drawn["noise"], inputs["model_output"])], levels


def test_sra_as_published(sra):
    inputs, (x0, x1, velocity), (levels, teacher_levels) = sra
    out = tensors(LOSSES["SRA"]["sra_loss"]["sml1"])
    student, teacher = Recorded(velocity, projected={TEACHER: inputs["xr"]}), Recorded(raw={20: inputs["xr_t"]})
    terms = run(method_alignment("sra"), student, teacher, x0, x1, levels, teacher_levels)

    assert worst(levels.values[:, 0], out["student_time"]) == 0
    assert worst(teacher_levels.values[:, 0], out["teacher_time"]) == 0
    assert worst(student.calls[0][0], tokens(out["student_input"])) < ROUNDING
    assert worst(teacher.calls[0][0], tokens(out["teacher_input"])) < ROUNDING
    assert student.calls[0][2].projected == {TEACHER: 8}  # --block-out-s 8 --block-out-t 20 of 28
    assert (teacher.calls[0][2].raw, teacher.calls[0][2].stop_after) == ((20,), 20)
    assert worst(flow_of_each(velocity, x0, x1, levels), out["denoising_loss_per_sample"]) < ROUNDING
    assert mean(terms["align/teacher"]) == pytest.approx(out["align_mean"], abs=ROUNDING)
    expected = float(out["denoising_loss_per_sample"].mean()) + 0.2 * out["align_mean"]
    assert float(total_loss(terms).detach()) == pytest.approx(expected, abs=ROUNDING)


@pytest.mark.parametrize(
    ("similarity", "recorded"),
    [("smooth_l1", "sml1"), ("l1", "l1"), ("l2", "l2"), ("cosine_over_tokens", "cos"), ("cosine", None)],
)
def test_sra_distances(sra, similarity, recorded):
    """Its 'cos' is one cosine per channel, over the tokens; one per token is what its paper and Self-Flow say."""
    inputs, (x0, x1, velocity), levels = sra
    config = AlignmentConfig(EmaTeacherConfig(similarity=similarity, weight=0.5))
    student, teacher = Recorded(velocity, projected={TEACHER: inputs["xr"]}), Recorded(raw={20: inputs["xr_t"]})
    term = run(config, student, teacher, x0, x1, *levels)["align/teacher"]
    criterion = LOSSES["SRA"]["criterion"]
    expected = criterion[recorded]["mean"] if recorded else criterion["reference_cos_over_features_dim_-1_mean"]
    assert mean(term) == pytest.approx(expected, abs=ROUNDING)


@pytest.mark.parametrize(("size", "hold", "decade"), [(256, 149, 1000), (512, 99, 800)])
def test_sra_weight_schedule(size, hold, decade):
    if size == 256:
        config = method_alignment("sra").ema_teacher
    else:
        config = EmaTeacherConfig(weight=0.2, constant_steps=hold * EPOCH, decay_10x_steps=decade * EPOCH)
    recorded = LOSSES["SRA"]["align_weight"]["non_cos_schedule"]
    epochs = [int(name.split("/epoch")[1]) for name in recorded if name.startswith(f"{size}/")]
    assert len(epochs) == 9
    for epoch in epochs:
        expected = recorded[f"{size}/epoch{epoch}"]
        assert config.weight_at(epoch * EPOCH) == pytest.approx(expected, rel=1e-12)
        # Theirs is constant within an epoch, ours falls on: by 0.3 % at most.
        assert expected * 0.997 < config.weight_at((epoch + 1) * EPOCH - 1) <= expected * (1 + 1e-12)


def largest_remainder(ratio, length):
    """Tokens of the first of two groups: floor, then what is missing goes to the larger fraction, ties to the first."""
    expected = torch.tensor([ratio, 1 - ratio]) * length
    counts = expected.floor()
    if counts.sum() < length:
        counts[(expected - counts).argmax()] += 1
    return int(counts[0])


def test_exact_mask_counts_tokens_as_theirs():
    for ratio, group in LOSSES["SRA_DTS_AS"]["group_counts"].items():
        if not ratio.startswith("["):  # more than two groups: no plan of ours has them
            assert [picked(float(ratio), 256), picked(float(ratio), 10)] == [
                group["counts_256"][0],
                group["counts_10"][0],
            ]
    for ratio in (0.05, 0.1, 0.25, 0.29, 0.35, 0.5):
        for length in range(1, 400):
            assert picked(ratio, length) == largest_remainder(ratio, length), (ratio, length)


def test_two_groups_with_a_teacher_at_the_cleaner_time():
    """SiT-SRA_DTS_AS with its teacher 'self_flow': the inputs of both networks, and the flow loss."""
    example = tensors(LOSSES["SRA_DTS_AS"]["example"])
    groups, times = example["group_ids"], example["student_time"]
    index = 1 - groups  # its first group is the share that the mask picks: our second level
    values = torch.stack([times[groups == 1].reshape(3, 3)[:, 0], times[groups == 0]], dim=1)
    levels = NoiseLevels(values, index, (3, 1))
    lowest = NoiseLevels(values.min(dim=1, keepdim=True).values)
    x0 = tokens(example["images"])
    by_group = [tokens(part) for part in example["student_inputs_concat"].chunk(2)]
    x1 = tokens(example["targets_concat"][:3]) + x0
    batch = TokenBatch(
        (Segment("image", x0, torch.zeros(1, 4, 3, dtype=torch.long)),), Context(torch.zeros(3, dtype=torch.bool))
    )
    expected = torch.where(groups[..., None] == 0, *by_group)
    assert worst(noised(batch, (x1,), levels)[0], expected) < ROUNDING
    assert worst(lowest.per_token(4), example["teacher_time"]) == 0
    assert worst(noised(batch, (x1,), lowest)[0], tokens(example["teacher_input"])) < ROUNDING


def test_a_whole_step_with_attention_separation():
    """SiT-SRA_DTS_AS with its networks: teacher 'sra', both networks separated, its cosine, weight 0.5; float64."""
    recorded = golden("separation_step")
    noising = NoisingConfig(**METHODS["self_flow_as"]["noising"])
    assert (noising.attention_separation, noising.teacher, noising.teacher_gap) == (True, "earlier", 0.2)
    levels = [NoiseLevels(recorded[side], recorded["index"], (12, 4)) for side in ("student", "teacher")]
    gaps = recorded["student"] - recorded["teacher"]
    assert bool((recorded["teacher"] >= 0).all() & (gaps >= 0).all() & (gaps <= 0.2).all())

    student, teacher = tiny_trunk().double(), tiny_trunk().double()
    with torch.no_grad():  # the recording's teacher
        for value in teacher.state_dict().values():
            value.mul_(1.01)
    alignment = method_alignment("self_flow_as")
    assert alignment.ema_teacher.similarity == "cosine"  # ours is per token; theirs is asked for by name
    alignment.ema_teacher.similarity = "cosine_over_tokens"
    assert alignment.ema_teacher.layers(student.depth) == (1, 3)
    batch = image_batch(recorded["x0"].double(), recorded["y"])
    drawn = NoiseSample((recorded["noise"],), *levels)
    terms = Objective(build_alignment(alignment, student.depth))(student, teacher, batch, drawn, {"image": 48.0})
    # Losses pass float32, and times float32 sines: worst seen 3.7e-8, gradients included.
    assert mean(terms["flow/image"]) == pytest.approx(float(recorded["flow"].mean()), rel=1e-6)
    assert mean(terms["align/teacher"]) == pytest.approx(float(recorded["align"].mean()), rel=1e-6)
    loss = total_loss(terms)
    assert float(loss.detach()) == pytest.approx(float(recorded["loss"]), rel=1e-6)
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in student.named_parameters()}
    norms = {n.removeprefix("grad_norm."): float(v) for n, v in recorded.items() if n.startswith("grad_norm.")}
    assert set(norms) == {name for name, value in gradients.items() if value is not None}
    for name, norm in norms.items():
        assert float(gradients[name].norm()) == pytest.approx(norm, rel=1e-6)
    for name in [n.removeprefix("grad.") for n in recorded if n.startswith("grad.")]:
        expected = recorded[f"grad.{name}"]
        assert worst(gradients[name], expected) < 1e-6 * float(expected.abs().max())


@pytest.fixture
def layer_sync():
    """Inputs, then (x0, x1, velocity) and levels in our time and sign: theirs has data at 1."""
    inputs = tensors(LOSSES["LayerSync"]["inputs"])
    x0, x1 = tokens(inputs["images"]), tokens(inputs["draws"]["noise"])
    return inputs, (x0, x1, -tokens(inputs["model_output"])), one_level(1 - inputs["draws"]["t_data_time"])


def test_layer_sync(layer_sync):
    inputs, (x0, x1, velocity), levels = layer_sync
    out = tensors(LOSSES["LayerSync"]["outputs"]["layer_sync"])
    student = Recorded(velocity, raw={8: inputs["zs_layer_shallow"], 16: inputs["zs_layer_deep"]})
    terms = run(method_alignment("layersync"), student, None, x0, x1, levels)
    noisy, _, feature_layers = student.calls[0]
    assert feature_layers.raw == (8, 16)  # --encoder-depth 8 --gt-encoder-depth 16 of 28
    assert worst(noisy, tokens(out["x_t"])) < ROUNDING
    assert worst(flow_of_each(velocity, x0, x1, levels), out["loss_per_sample"]) < ROUNDING
    assert mean(terms["align/layer_sync"]) - 1 == pytest.approx(out["reg_mean"], abs=ROUNDING)
    assert float(total_loss(terms).detach()) - 0.2 == pytest.approx(out["total_with_weight_0_2"], abs=ROUNDING)


def test_layer_sync_of_several_pairs_keeps_only_the_last(layer_sync):
    """Its `multiple_sync` subtracts outside the loop. The sum that was meant is that of two of our terms."""
    inputs, (x0, x1, velocity), levels = layer_sync
    student = Recorded(velocity, raw={i + 1: value for i, value in enumerate(inputs["all_reps"].values())})
    values = []
    for layer, target in inputs["multi_blocks"].tolist():
        config = AlignmentConfig(layer_sync=LayerSyncConfig(layer=layer, target_layer=target))
        terms = run(config, student, None, x0, x1, levels)
        values.append(mean(terms["align/layer_sync"]) - 1)
    entry = LOSSES["LayerSync"]
    assert values[-1] == pytest.approx(entry["outputs"]["multiple_sync"]["reg_mean"], abs=ROUNDING)
    assert sum(values) == pytest.approx(entry["intended_multi_sum_mean"], abs=ROUNDING)


def test_dispersive():
    entry = tensors(LOSSES["Dispersive"])
    config = method_alignment("dispersive")
    z = entry["z"]
    student = Recorded(torch.zeros_like(z), raw={DEPTH: z})
    terms = run(config, student, None, torch.zeros_like(z), torch.zeros_like(z), one_level(torch.zeros(4)))
    value = mean(terms["align/dispersive"])
    assert value == pytest.approx(entry["closed_form_float64"], rel=1e-7)  # ours is float64 up to the end
    assert value == pytest.approx(entry["value"], rel=1e-6)

    inputs, out = entry["inputs"], entry["training"]
    x0, velocity = tokens(inputs["images"]), -tokens(inputs["model_output"])
    acts = inputs["acts"][-1]  # of the last block
    student = Recorded(velocity, raw={DEPTH: acts})
    x1 = torch.zeros_like(x0)  # its noise was not recorded: only the part of the loss that does not need it
    term = run(config, student, None, x0, x1, one_level(inputs["t_data_time"]))["align/dispersive"]
    assert term.weight * mean(term) == pytest.approx(out["disp_loss_times_0_25"], rel=1e-6)


def test_self_flow():
    """gregoiremrr/self-flow-torch, an independent implementation with data at 1; without its learned weighting."""
    entry = tensors(LOSSES["gregoiremrr_SelfFlow"])
    inputs, drawn = entry["inputs"], entry["inputs"]["draws"]
    x0, x1 = tokens(inputs["images"]), tokens(drawn["noise_times_sigma"])
    levels = NoiseLevels(1 - torch.stack([drawn["t"], drawn["s"]], dim=1), drawn["mask"].long())
    lowest = NoiseLevels(levels.values.min(dim=1, keepdim=True).values)
    student = Recorded(-tokens(inputs["v_pred"]), projected={TEACHER: inputs["student_features"]})
    teacher = Recorded(raw={20: inputs["teacher_features"]})
    terms = run(method_alignment("self_flow"), student, teacher, x0, x1, levels, lowest)
    assert worst(student.calls[0][0], tokens(entry["student_input"])) < ROUNDING
    assert worst(teacher.calls[0][0], tokens(entry["teacher_input"])) < ROUNDING
    assert worst(levels.per_token(4), 1 - entry["student_t"]) < ROUNDING
    assert worst(lowest.values[:, 0], 1 - entry["teacher_t"]) < ROUNDING
    assert mean(terms["flow/image"]) == pytest.approx(entry["mse"], abs=ROUNDING)
    assert mean(terms["align/teacher"]) == pytest.approx(entry["rep_1_minus_cos"], abs=ROUNDING)
    intended = entry["total"] - entry["weighted_flow"] + entry["mse"]
    assert float(total_loss(terms).detach()) == pytest.approx(intended, abs=ROUNDING)
