"""The loss against a calculation by hand, with a trunk whose outputs are known."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from core.alignment.dispersive import DispersiveConfig
from core.alignment.distances import DISTANCES
from core.alignment.ema_teacher import EmaTeacher, EmaTeacherConfig
from core.alignment.external import ExternalConfig
from core.alignment.layer_sync import LayerSyncConfig
from core.alignment.terms import AlignmentConfig, build_alignment
from core.noising import NoiseSample
from core.objective import Objective, noised, total_loss
from core.types import Context, FeatureLayers, NoiseLevels, Segment, TokenBatch, TrunkOutput

B, N, C, D, DEPTH = 3, 6, 4, 5, 10


class KnownTrunk(nn.Module):
    """velocity = a x; layer k = x W_k; the projector doubles. It notes what it was asked."""

    def __init__(self, seed):
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.factor = nn.Parameter(torch.randn((), generator=draw, dtype=torch.float64))
        self.layers = torch.randn(DEPTH + 1, C, D, generator=draw, dtype=torch.float64)
        self.calls = []

    def forward(self, noisy, levels, batch, feature_layers):
        self.calls.append((noisy, levels, feature_layers))
        x = torch.cat(noisy, dim=1)
        return TrunkOutput(
            None if feature_layers.stop_after else tuple(self.factor * part for part in noisy),
            {k: x @ self.layers[k] for k in feature_layers.raw},
            {name: self.factor * 2 * x @ self.layers[k] for name, k in feature_layers.projected.items()},
        )


def example(conditioning_mask=False):
    draw = torch.Generator().manual_seed(5)
    x0, x1 = torch.randn(2, B, N, C, generator=draw, dtype=torch.float64)
    mask = torch.zeros(B, N, dtype=torch.bool)
    mask[:, :2] = True
    segment = Segment(
        "image", x0, torch.zeros(1, N, 3, dtype=torch.long), conditioning_mask=mask if conditioning_mask else None
    )
    batch = TokenBatch((segment,), Context(torch.zeros(B, dtype=torch.bool)))
    values = torch.rand(B, 2, generator=draw, dtype=torch.float64)
    index = torch.randint(2, (B, N), generator=draw)
    drawn = NoiseSample((x1,), NoiseLevels(values, index), NoiseLevels(values.min(1, keepdim=True).values))
    return batch, drawn, x0, x1


@pytest.mark.parametrize("conditioning_mask", [False, True])
def test_self_flow_loss_by_hand(conditioning_mask):
    batch, drawn, x0, x1 = example(conditioning_mask)
    student, teacher = KnownTrunk(0), KnownTrunk(1)
    loss_mask = batch.loss_mask()
    count = float(loss_mask.sum())
    objective = Objective(build_alignment(AlignmentConfig(EmaTeacherConfig()), DEPTH))
    terms = objective(student, teacher, batch, drawn, {"image": count})

    tau = drawn.student.values.gather(1, drawn.student.index)[..., None]
    x_tau = (1 - tau) * x0 + tau * x1
    low = drawn.teacher.values[..., None]
    x_min = (1 - low) * x0 + low * x1
    flow = ((student.factor * x_tau - (x1 - x0)) ** 2).mean(-1)[loss_mask].mean()
    cosine = F.cosine_similarity(2 * student.factor * x_tau @ student.layers[3], x_min @ teacher.layers[7], dim=-1)
    expected = flow + 0.8 * (1 - cosine[loss_mask].mean())

    # features and errors pass through float32, as they do in training
    torch.testing.assert_close(total_loss(terms).double(), expected, atol=1e-6, rtol=1e-6)
    assert student.calls[0][2].projected == {"teacher": 3}  # round(0.3 * 10), round(0.7 * 10)
    assert teacher.calls[0][2].raw == (7,)
    assert teacher.calls[0][2].stop_after == 7
    total_loss(terms).backward()
    assert student.factor.grad is not None
    assert teacher.factor.grad is None


def test_flow_matching_never_calls_a_teacher():
    batch, drawn, _, _ = example()
    terms = Objective()(KnownTrunk(0), None, batch, drawn, {"image": float(B * N)})
    assert list(terms) == ["flow/image"]


@pytest.mark.parametrize("similarity", DISTANCES)
def test_splitting_a_batch_and_adding_the_parts_gives_the_same_loss(similarity):
    """Sums over global counts: accumulation cannot change the loss, whatever the parts' token counts are.

    Not so the dispersive term, which compares samples of a microbatch: tests/core/test_alignment_dispersive.py.
    """
    batch, drawn, x0, _ = example(conditioning_mask=True)
    conditioning_mask = batch.segments[0].conditioning_mask.clone()
    conditioning_mask[0, 3:] = True
    config = AlignmentConfig(
        EmaTeacherConfig(similarity=similarity), ExternalConfig(similarity=similarity), LayerSyncConfig()
    )
    objective = Objective(build_alignment(config, DEPTH))
    counts = {"image": float((~conditioning_mask).sum())}
    features = {"dino": x0 @ torch.ones(C, D, dtype=torch.float64) + torch.arange(D)}

    def part(rows):
        segment = batch.segments[0]
        cut = TokenBatch(
            (Segment("image", segment.x0[rows], segment.ids, conditioning_mask=conditioning_mask[rows]),),
            Context(batch.context.dropped[rows]),
        )
        levels = NoiseLevels(drawn.student.values[rows], drawn.student.index[rows])
        cut_draws = NoiseSample((drawn.noise[0][rows],), levels, NoiseLevels(drawn.teacher.values[rows]))
        inputs = {name: value[rows] for name, value in features.items()}
        return total_loss(objective(KnownTrunk(0), KnownTrunk(1), cut, cut_draws, counts, inputs))

    torch.testing.assert_close(part(slice(0, 1)) + part(slice(1, 3)), part(slice(0, 3)), atol=1e-6, rtol=1e-6)


def test_two_segments_share_one_sequence_of_levels():
    batch, drawn, x0, x1 = example()
    ids = torch.zeros(1, 2, 3, dtype=torch.long)
    pair = TokenBatch((batch.segments[0], Segment("action", x0[:, :2, :3], ids)), batch.context)
    index = torch.cat([drawn.student.index, 1 - drawn.student.index[:, :2]], dim=1)
    levels = NoiseLevels(drawn.student.values, index)
    first, second = noised(pair, (x1, x1[:, :2, :3]), levels)
    assert first.shape == (B, N, C)
    t = drawn.student.values.gather(1, index[:, N:])[..., None]
    torch.testing.assert_close(second, (1 - t) * x0[:, :2, :3] + t * x1[:, :2, :3], atol=1e-12, rtol=0)


@pytest.mark.parametrize("similarity", ["l1", "l2"])
def test_ablation_distances(similarity):
    batch, drawn, _, _ = example()
    config = AlignmentConfig(EmaTeacherConfig(similarity=similarity, student_layer=1, teacher_layer=2))
    student, teacher = KnownTrunk(0), KnownTrunk(1)
    terms = Objective(build_alignment(config, DEPTH))(student, teacher, batch, drawn, {"image": float(B * N)})
    difference = (student.calls[0][0][0] @ student.layers[1] * 2 * student.factor) - teacher.calls[0][0][
        0
    ] @ teacher.layers[2]
    expected = difference.abs().mean() if similarity == "l1" else difference.square().mean()
    torch.testing.assert_close(terms["align/teacher"].mean().double(), expected, atol=1e-5, rtol=1e-5)


class Leaves(nn.Module):
    """A trunk whose outputs are parameters by name, so that a gradient tells what a loss looked at."""

    def __init__(self, seed, encoders=()):
        super().__init__()
        draw = torch.Generator().manual_seed(seed)

        def leaf():
            return nn.Parameter(torch.randn(B, N, D, generator=draw))

        self.velocity = nn.Parameter(torch.randn(B, N, C, generator=draw))
        self.raw = nn.ParameterList([leaf() for _ in range(DEPTH)])
        self.projected = nn.ParameterDict({name: leaf() for name in ("teacher", *encoders)})
        self.calls = []

    def forward(self, noisy, levels, batch, feature_layers):
        self.calls.append(feature_layers)
        self.with_graph = torch.is_grad_enabled()
        return TrunkOutput(
            None if feature_layers.stop_after else (self.velocity,),
            {k: self.raw[k - 1] for k in feature_layers.raw},
            {name: self.projected[name] for name in feature_layers.projected},
        )

    def touched(self):
        """Names of the outputs that have a gradient other than 0."""
        return {name for name, p in self.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}


def mean(term):
    return float(term.mean().detach())


ALL = AlignmentConfig(EmaTeacherConfig(), ExternalConfig(), LayerSyncConfig(), DispersiveConfig())
SECTIONS = {
    "ema_teacher": ["align/teacher", "teacher_norm"],
    "external": ["align/dino", "align/siglip"],
    "layer_sync": ["align/layer_sync"],
    "dispersive": ["align/dispersive"],
}


def targets(seed=9):
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.randn(B, N, D, generator=draw, requires_grad=True) for name in ("dino", "siglip")}


def evaluate(alignment, student=None, teacher=None, features=None, loss_mask=None, step=0):
    """Terms of the float32 example, with features of encoders if external alignment is on."""
    batch, drawn, x0, x1 = example()
    segment = Segment("image", x0.float(), batch.segments[0].ids, valid=loss_mask)
    batch = TokenBatch((segment,), batch.context)
    drawn = NoiseSample((x1.float(),), drawn.student, drawn.teacher)
    student = Leaves(0, ("dino", "siglip")) if student is None else student
    features = targets() if features is None and alignment.external else features or {}
    objective = Objective(build_alignment(alignment, DEPTH))
    count = float(batch.loss_mask().sum())
    return objective(student, teacher, batch, drawn, {"image": count}, features, step)


@pytest.mark.parametrize("name", ["external", "layer_sync", "dispersive"])
def test_no_teacher_pass_unless_a_term_needs_one(name):
    teacher = Leaves(1)
    terms = evaluate(AlignmentConfig(**{name: getattr(ALL, name)}), teacher=teacher)
    assert teacher.calls == []
    assert sorted(terms) == sorted(["flow/image", *SECTIONS[name]])


def test_terms_share_one_forward_of_each_network_and_add_up():
    student, teacher = Leaves(0, ("dino", "siglip")), Leaves(1)
    together = evaluate(ALL, student, teacher)
    assert len(student.calls) == len(teacher.calls) == 1
    assert student.calls[0] == FeatureLayers(raw=(3, 6, 10), projected={"teacher": 3, "dino": 3, "siglip": 3})
    assert teacher.calls[0] == FeatureLayers(raw=(7,), stop_after=7)

    expected = together["flow/image"].mean()
    for name, names in SECTIONS.items():
        alone = evaluate(AlignmentConfig(**{name: getattr(ALL, name)}), student, teacher)
        for key in names:
            assert mean(alone[key]) == mean(together[key])
            expected = expected + alone[key].weight * alone[key].mean()
    assert set(together) == {"flow/image", *(key for names in SECTIONS.values() for key in names)}
    assert [together[f"align/{name}"].weight for name in ("teacher", "dino", "layer_sync", "dispersive")] == [
        0.8,
        0.25,  # REPA's 0.5 over two encoders
        0.2,
        0.25,
    ]
    torch.testing.assert_close(total_loss(together), expected)


def test_several_teacher_terms_share_one_teacher_forward():
    class Deeper(EmaTeacher):
        def __call__(self, inputs):
            return {f"deeper/{name}": term for name, term in super().__call__(inputs).items()}

    near, far = EmaTeacherConfig(teacher_layer=5), EmaTeacherConfig(teacher_layer=9)
    batch, drawn, _, _ = example()
    student, teacher = Leaves(0), Leaves(1)
    terms = Objective([EmaTeacher(near, DEPTH), Deeper(far, DEPTH)])(student, teacher, batch, drawn, {"image": 18.0})
    assert teacher.calls == [FeatureLayers(raw=(5, 9), stop_after=9)]
    assert {"align/teacher", "deeper/align/teacher"} < set(terms)


def test_only_encoders_of_the_steps_modality_are_compared():
    student = Leaves(0, ("dino", "siglip"))
    dino = {"dino": targets()["dino"]}
    terms = evaluate(AlignmentConfig(external=ExternalConfig()), student, features=dino)
    assert student.calls[0].projected == {"dino": 3}
    assert sorted(terms) == ["align/dino", "flow/image"]
    assert terms["align/dino"].weight == 0.5
    total_loss(terms).backward()
    assert "projected.siglip" not in student.touched()


def test_gradients_reach_the_student_and_nothing_that_is_a_target():
    student, teacher, features = Leaves(0, ("dino", "siglip")), Leaves(1), targets()
    total_loss(evaluate(ALL, student, teacher, features)).backward()
    # raw.2 is layer 3, which LayerSync trains; its target, layer 6, is raw.5; raw.9 is dispersed.
    assert student.touched() == {
        "velocity",
        "raw.2",
        "raw.9",
        "projected.teacher",
        "projected.dino",
        "projected.siglip",
    }
    assert teacher.touched() == set()
    assert (student.with_graph, teacher.with_graph) == (True, False)  # a teacher's graph would cost memory, unused
    assert [target.grad for target in features.values()] == [None, None]


def test_tokens_that_do_not_count_enter_no_term():
    loss_mask = torch.ones(B, N, dtype=torch.bool)
    loss_mask[:, 4:] = False  # padding
    student, teacher, features = Leaves(0, ("dino", "siglip")), Leaves(1), targets()
    before = evaluate(ALL, student, teacher, features, loss_mask)
    total_loss(before).backward()
    for name, parameter in student.named_parameters():
        if name in student.touched():
            assert (parameter.grad[:, 4:] == 0).all(), name
            assert parameter.grad[:, :4].abs().max() > 0, name
    with torch.no_grad():
        for tensor in (*student.parameters(), *teacher.parameters(), *features.values()):
            tensor[:, 4:] = 1e3
    after = evaluate(ALL, student, teacher, features, loss_mask)
    assert {name: mean(term) for name, term in after.items()} == {name: mean(term) for name, term in before.items()}
    assert mean(evaluate(ALL, student, teacher, features)["flow/image"]) > 10 * mean(after["flow/image"])


def test_the_weight_of_a_step():
    config = AlignmentConfig(EmaTeacherConfig(weight=0.2, constant_steps=10, decay_10x_steps=10))
    weights = [evaluate(config, teacher=Leaves(1), step=step)["align/teacher"].weight for step in (0, 10, 20)]
    assert weights == pytest.approx([0.2, 0.2, 0.02])


def test_losses_stay_float32_under_autocast():
    """Features in bfloat16 lose digits before they get here; the losses must not lose more."""
    student, teacher, features = Leaves(0, ("dino", "siglip")), Leaves(1), targets()
    for model in (student, teacher):
        model.to(torch.bfloat16)
    plain = evaluate(ALL, student, teacher, features)
    with torch.autocast("cpu", torch.bfloat16):
        inside = evaluate(ALL, student, teacher, features)
        assert total_loss(inside).dtype == torch.float32
    for name, term in inside.items():
        assert term.total.dtype == torch.float32
        assert mean(term) == mean(plain[name]), name
