"""One Self-Flow step against golden values: loss, gradients, clipping, AdamW and EMA.

Once by a loop written out here, and once through the objective, optimizer and teacher that the trainer uses.
"""

import pytest
import torch
from torch.nn import functional as F

from core.alignment.ema_teacher import EmaTeacherConfig
from core.alignment.terms import AlignmentConfig, build_alignment
from core.noising import NoiseSample
from core.objective import Objective, total_loss
from core.training.ema import make_teacher, update_teacher
from core.training.optim import OptimizerConfig, build_optimizer
from core.types import FeatureLayers, NoiseLevels
from tests.parity.common import golden, golden_json, image_batch, tiny_trunk, worst

STEP = golden("train_step")
STUDENT = NoiseLevels(torch.stack([STEP["t"], STEP["s"]], dim=1), STEP["mask"].long())
TEACHER = NoiseLevels(STEP["t_min"][:, None])


def named(prefix):
    return {name.removeprefix(prefix): value for name, value in STEP.items() if name.startswith(prefix)}


def teacher_of(student):
    """The golden teacher: every parameter moved by 0.01 randn, drawn afresh from seed 9 for each."""
    teacher = make_teacher(student)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter += 0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(9))
    return teacher


def hand_loss(student, teacher):
    """The paper's Eq. 4-7, from tensors alone."""
    batch = image_batch(STEP["x0"], STEP["y"])
    tau = torch.where(STEP["mask"], STEP["s"][:, None], STEP["t"][:, None])[..., None]
    x_tau = (1 - tau) * STEP["x0"] + tau * STEP["x1"]
    x_min = (1 - STEP["t_min"][:, None, None]) * STEP["x0"] + STEP["t_min"][:, None, None] * STEP["x1"]
    output = student((x_tau,), STUDENT, batch, FeatureLayers(projected={"teacher": 1}))
    with torch.no_grad():
        target = teacher((x_min,), TEACHER, batch, FeatureLayers(raw=(3,), stop_after=3)).raw[3]
    cosine = F.cosine_similarity(output.projected["teacher"], target, dim=-1)
    flow = (output.velocity[0] - (STEP["x1"] - STEP["x0"])).square().mean()
    return output, target, cosine, flow, flow - 0.8 * cosine.mean()


def objective_loss(student, teacher):
    batch = image_batch(STEP["x0"], STEP["y"])
    objective = Objective(build_alignment(AlignmentConfig(ema_teacher=EmaTeacherConfig()), student.depth))
    terms = objective(student, teacher, batch, NoiseSample((STEP["x1"],), STUDENT, TEACHER), {"image": 48.0})
    return total_loss(terms) - 0.8  # the logged term is 1 - cos


def test_outputs_and_loss_terms():
    student = tiny_trunk()
    output, target, cosine, flow, loss = hand_loss(student, teacher_of(student))
    assert worst(output.velocity[0], STEP["v_pred"]) < 1e-5  # worst seen 1.9e-6
    assert worst(output.projected["teacher"], STEP["student_proj"]) < 1e-5  # worst seen 1.1e-6
    assert worst(target, STEP["teacher_raw"]) < 1e-5  # worst seen 1.9e-6
    assert worst(cosine, STEP["cos"]) < 1e-6  # worst seen 2.2e-7
    assert worst(flow, STEP["L_gen"]) < 1e-6  # worst seen 4.8e-7
    assert worst(loss, STEP["loss"]) < 1e-6  # worst seen 4.8e-7


@pytest.mark.parametrize("loss_of", [lambda *models: hand_loss(*models)[-1], objective_loss])
def test_gradients_optimizer_and_ema(loss_of):
    student = tiny_trunk()
    teacher = teacher_of(student)
    optimizer = build_optimizer(OptimizerConfig(lr=1e-4), student)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    for name, value in named("before_ema.").items():
        assert worst(before[name], value) == 0

    loss = loss_of(student, teacher)
    assert worst(loss, STEP["loss"]) < 1e-6  # worst seen 4.8e-7
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in student.named_parameters()}
    for name, expected in named("grad.").items():
        assert worst(gradients[name], expected) < 1e-5 * float(expected.abs().max())  # worst seen 1.2e-6 of the largest
    norms = golden_json("summary")["grad_norms"]
    assert set(norms) == set(gradients)
    for name, expected in norms.items():
        assert float(gradients[name].norm()) == pytest.approx(expected, rel=1e-5)  # worst seen 4.0e-7

    total = torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
    assert float(total) == pytest.approx(golden_json("summary")["grad_norm_total_before_clip"], rel=1e-5)
    optimizer.step()
    update_teacher(teacher, student, 0.9999)
    for kind, model in (("after_step.", student), ("after_ema.", teacher)):
        state = model.state_dict()
        for name, expected in named(kind).items():
            assert worst(state[name], expected) < 1e-6  # worst seen 8.9e-8
            assert not torch.equal(state[name], before[name])
