"""Networks that are built without storage, sharded, and then given the weights of an unsharded one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch

from core.training.distributed import World
from core.training.ema import make_teacher
from core.training.sharding import Sharding, materialize, whole
from core.trunk.context import ContextConfig
from core.trunk.ddt import DDT, DDTConfig
from core.trunk.mmdit import MMDiT, MMDiTConfig
from core.trunk.projectors import ProjectorSpec
from core.trunk.sit import SiT, SiTConfig
from core.trunk.wan import Wan, WanConfig
from modalities.generation import Trunk
from tests.thinned import slow
from tests.worlds import run, values

CPU, SEED = torch.device("cpu"), 3
HEADS = {"teacher": ProjectorSpec("simple", 7), "other": ProjectorSpec("simple", 5)}  # no multiples of two
CLASSES = {"width": 32, "depth": 2, "heads": 2, "channels": 20, "grid": 2, "num_classes": 3}


def mmdit(kind: str) -> MMDiT:
    shape = {"width": 48, "heads": 2, "double_blocks": 1, "single_blocks": 1}
    context = ContextConfig(kind=kind, feature_dim=9, words=4)
    return MMDiT(MMDiTConfig(**shape, channels={"image": 5}, context=context), SEED, HEADS)


def wan() -> Wan:
    shape = {"width": 24, "heads": 2, "depth": 2, "hidden": 33, "text_rows": 4, "text_width": 16}
    return Wan(WanConfig(**shape, channels={"video": 5}), SEED, HEADS)


def ddt() -> DDT:
    return DDT(DDTConfig(**CLASSES, head_width=32, head_heads=2), SEED, HEADS)


def sit() -> SiT:
    return SiT(SiTConfig(**CLASSES), SEED, HEADS)


def on_meta(build: Callable[[], Trunk]) -> Trunk:
    with torch.device("meta"):
        return build()


@pytest.mark.parametrize(
    "networks",
    [
        [partial(mmdit, "published"), ddt],
        slow([*(partial(mmdit, kind) for kind in ("tokens", "labels", "features")), sit, wan]),
    ],
    ids=["some", "others"],
)
def test_a_network_that_is_sharded_before_it_has_weights_gets_those_of_a_whole_one(networks):
    """Fails where each process draws its own share, where the teacher is left without weights, and where a buffer is
    left as it came from the meta device."""

    def action(world: World) -> list[tuple[str, str]]:
        torch.use_deterministic_algorithms(True)  # memory that is not filled is then NaN, and not by chance 0
        sharding, differ = Sharding(world, CPU), []
        for build in networks:
            student = on_meta(build)
            teacher = make_teacher(student)
            sharding.apply(student)
            sharding.apply(teacher, teacher=True)
            materialize(student, teacher, CPU, lambda model: model.reset(SEED))
            wanted = build().state_dict()
            for model in (student, teacher):
                found = model.state_dict()
                assert found.keys() == wanted.keys()
                unlike = [name for name, value in wanted.items() if not torch.equal(whole(found[name]), value)]
                differ += [(type(model).__name__, name) for name in unlike]
        return differ

    assert values(run(2, action)) == [[], []]


@pytest.mark.slow
def test_no_process_holds_the_whole_network():
    """Memory of four processes that hold a quarter of student and teacher each. Fails where they are built whole."""
    shape = {"width": 512, "heads": 8, "double_blocks": 4, "single_blocks": 8, "channels": {"image": 16}}

    def build() -> MMDiT:
        return MMDiT(MMDiTConfig(**shape), SEED)

    def action(world: World) -> tuple[int, int]:
        sharding, before = Sharding(world, CPU), peak()
        student = on_meta(build)
        size = 4 * sum(parameter.numel() for parameter in student.parameters())
        teacher = make_teacher(student)
        sharding.apply(student)
        sharding.apply(teacher, teacher=True)
        materialize(student, teacher, CPU, lambda model: model.reset(SEED))
        return size, peak() - before

    for size, grown in values(run(4, action)):
        print(f"network {size / 1e6:.0f} MB, grown by {grown / 1e6:.0f} MB")
        assert grown < size


def peak() -> int:
    """Bytes that this process has had resident at most, since it was forked."""
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith("VmHWM"))
