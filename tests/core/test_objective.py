"""The loss against a calculation by hand, with a trunk whose outputs are known."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from core.alignment.ema_teacher import EmaTeacherConfig
from core.alignment.terms import AlignmentConfig, build_alignment
from core.noising import Draws
from core.objective import Objective, noised, total_loss
from core.types import Context, NoiseLevels, Segment, TokenBatch, TrunkOutput

B, N, C, D, DEPTH = 3, 6, 4, 5, 10


class KnownTrunk(nn.Module):
    """velocity = a x; layer k = x W_k; the projector doubles. It notes what it was asked."""

    def __init__(self, seed):
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.factor = nn.Parameter(torch.randn((), generator=draw, dtype=torch.float64))
        self.layers = torch.randn(DEPTH + 1, C, D, generator=draw, dtype=torch.float64)
        self.calls = []

    def forward(self, noisy, levels, batch, taps):
        self.calls.append((noisy, levels, taps))
        x = torch.cat(noisy, dim=1)
        return TrunkOutput(
            None if taps.stop_after else tuple(self.factor * part for part in noisy),
            {k: x @ self.layers[k] for k in taps.raw},
            {name: self.factor * 2 * x @ self.layers[k] for name, k in taps.projected.items()},
        )


def example(given=False):
    draw = torch.Generator().manual_seed(5)
    x0, x1 = torch.randn(2, B, N, C, generator=draw, dtype=torch.float64)
    mask = torch.zeros(B, N, dtype=torch.bool)
    mask[:, :2] = True
    segment = Segment("image", x0, torch.zeros(1, N, 3, dtype=torch.long), given=mask if given else None)
    batch = TokenBatch((segment,), Context(torch.zeros(B, dtype=torch.bool)))
    values = torch.rand(B, 2, generator=draw, dtype=torch.float64)
    index = torch.randint(2, (B, N), generator=draw)
    draws = Draws((x1,), NoiseLevels(values, index), NoiseLevels(values.min(1, keepdim=True).values))
    return batch, draws, x0, x1


@pytest.mark.parametrize("given", [False, True])
def test_self_flow_loss_by_hand(given):
    batch, draws, x0, x1 = example(given)
    student, teacher = KnownTrunk(0), KnownTrunk(1)
    counted = batch.counted()
    count = float(counted.sum())
    objective = Objective(build_alignment(AlignmentConfig(EmaTeacherConfig()), DEPTH))
    terms = objective(student, teacher, batch, draws, {"image": count})

    tau = draws.student.values.gather(1, draws.student.index)[..., None]
    x_tau = (1 - tau) * x0 + tau * x1
    low = draws.teacher.values[..., None]
    x_min = (1 - low) * x0 + low * x1
    flow = ((student.factor * x_tau - (x1 - x0)) ** 2).mean(-1)[counted].mean()
    cosine = F.cosine_similarity(2 * student.factor * x_tau @ student.layers[3], x_min @ teacher.layers[7], dim=-1)
    expected = flow + 0.8 * (1 - cosine[counted].mean())

    # features and errors pass through float32, as they do in training
    torch.testing.assert_close(total_loss(terms).double(), expected, atol=1e-6, rtol=1e-6)
    assert student.calls[0][2].projected == {"teacher": 3}  # round(0.3 * 10), round(0.7 * 10)
    assert teacher.calls[0][2].raw == (7,)
    assert teacher.calls[0][2].stop_after == 7
    total_loss(terms).backward()
    assert student.factor.grad is not None
    assert teacher.factor.grad is None


def test_flow_matching_never_calls_a_teacher():
    batch, draws, _, _ = example()
    terms = Objective()(KnownTrunk(0), None, batch, draws, {"image": float(B * N)})
    assert list(terms) == ["flow/image"]


def test_splitting_a_batch_and_adding_the_parts_gives_the_same_loss():
    """Sums over global counts: accumulation cannot change the loss, whatever the parts' token counts are."""
    batch, draws, _, _ = example(given=True)
    objective = Objective(build_alignment(AlignmentConfig(EmaTeacherConfig()), DEPTH))
    counts = {"image": float(batch.counted().sum())}

    def part(rows):
        segment = batch.segments[0]
        cut = TokenBatch(
            (Segment("image", segment.x0[rows], segment.ids, given=segment.given[rows]),),
            Context(batch.context.dropped[rows]),
        )
        levels = NoiseLevels(draws.student.values[rows], draws.student.index[rows])
        cut_draws = Draws((draws.noise[0][rows],), levels, NoiseLevels(draws.teacher.values[rows]))
        return total_loss(objective(KnownTrunk(0), KnownTrunk(1), cut, cut_draws, counts))

    whole = total_loss(objective(KnownTrunk(0), KnownTrunk(1), batch, draws, counts))
    torch.testing.assert_close(part(slice(0, 1)) + part(slice(1, 3)), whole, atol=1e-6, rtol=1e-6)


def test_two_segments_share_one_sequence_of_levels():
    batch, draws, x0, x1 = example()
    ids = torch.zeros(1, 2, 3, dtype=torch.long)
    pair = TokenBatch((batch.segments[0], Segment("action", x0[:, :2, :3], ids)), batch.context)
    index = torch.cat([draws.student.index, 1 - draws.student.index[:, :2]], dim=1)
    levels = NoiseLevels(draws.student.values, index)
    first, second = noised(pair, (x1, x1[:, :2, :3]), levels)
    assert first.shape == (B, N, C)
    t = draws.student.values.gather(1, index[:, N:])[..., None]
    torch.testing.assert_close(second, (1 - t) * x0[:, :2, :3] + t * x1[:, :2, :3], atol=1e-12, rtol=0)


def test_alignment_layers_must_fit_the_depth():
    config = EmaTeacherConfig(student_layer=8, teacher_layer=40)
    assert "got 8, 40, 28" in config.depth_problems(28)[0]
    assert EmaTeacherConfig().depth_problems(28) == []
    assert EmaTeacherConfig().layers(28) == (8, 20)
    assert EmaTeacherConfig().layers(21) == (6, 15)


@pytest.mark.parametrize("similarity", ["l1", "l2"])
def test_ablation_distances(similarity):
    batch, draws, _, _ = example()
    config = AlignmentConfig(EmaTeacherConfig(similarity=similarity, student_layer=1, teacher_layer=2))
    student, teacher = KnownTrunk(0), KnownTrunk(1)
    terms = Objective(build_alignment(config, DEPTH))(student, teacher, batch, draws, {"image": float(B * N)})
    difference = (student.calls[0][0][0] @ student.layers[1] * 2 * student.factor) - teacher.calls[0][0][
        0
    ] @ teacher.layers[2]
    expected = difference.abs().mean() if similarity == "l1" else difference.square().mean()
    torch.testing.assert_close(terms["align/teacher"].mean().double(), expected, atol=1e-5, rtol=1e-5)
