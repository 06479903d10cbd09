"""What devices send each other: by hand, and against what FSDP really asks of torch.distributed."""

from __future__ import annotations

import pytest
import torch.distributed as dist

from configs.assembly import Assembly
from configs.load import load_config
from core.training.distributed import World
from tests.scale.runs import BATCHES, build
from tests.tools.tiny import CONFIG
from tests.worlds import run, values
from tools.dry_run.exchange import Networks, exchange_lines, exchanged_bytes, networks


def test_by_hand():
    found = Networks(blocks=1000, around=100, teacher=600)
    # bf16: blocks twice, the rest once, the teacher once; float32 gradients; 7 of 8 come from others
    assert sum(exchanged_bytes(found, 8, 1)) == (2 * (2000 + 100 + 600) + 4 * 1100) * 7 / 8
    assert sum(exchanged_bytes(found, 8, 1, microbatches=3)) == (3 * 2 * 2700 + 4 * 1100) * 7 / 8
    assert sum(exchanged_bytes(found, 8, 1, precision="fp32")) == (4 * 2700 + 4 * 1100) * 7 / 8
    assert exchanged_bytes(found, 1, 4) == (0, 2 * 4 * 1100 * 3 / 4)  # copies: the sum of the gradients alone
    assert exchanged_bytes(found, 8, 4) == (round((5400 + 4400) * 7 / 8), 2 * 4400 / 8 * 3 / 4)
    assert exchanged_bytes(found, 1, 1) == (0, 0)


@pytest.mark.slow
def test_a_step_exchanges_what_is_counted(tmp_path):
    """Of a step in float32 with two microbatches on two processes, to the padding of uneven layers."""

    def action(world: World) -> tuple[int, int]:
        trainer = build(world, tmp_path / "run", *BATCHES, "training.accumulate=2", "training.steps=1")
        alone = build(World(), tmp_path / f"alone-{world.rank}", *BATCHES)
        sent = 0
        old, new = ("all_gather_into_tensor", "reduce_scatter_tensor"), ("all_gather_single", "reduce_scatter_single")
        names = new if hasattr(dist, new[0]) else old  # torch 2.14 renamed them
        plain = {name: getattr(dist, name) for name in names}

        def count(name: str):
            def call(*arguments, **named):
                nonlocal sent
                tensors = [*arguments, *named.values()]
                sent += max(t.nbytes for t in tensors if hasattr(t, "nbytes")) // 2  # half is one's own
                return plain[name](*arguments, **named)

            return call

        for name in plain:
            setattr(dist, name, count(name))
        trainer.fit()
        found = networks(alone.student, alone.objective)
        return sent, sum(exchanged_bytes(found, 2, 1, 2, "fp32"))

    for sent, counted in values(run(2, action, timeout=300)):
        assert sent == pytest.approx(counted, rel=0.02)


def test_the_table_names_what_would_hide_the_exchanges(tmp_path):
    assembly = Assembly(load_config(CONFIG, []), tmp_path)
    trunk, objective = assembly.trunk, assembly.objective
    head, devices, sharded, *_ = exchange_lines(trunk, objective, 989e12 * 0.4 * 1e-3, 1, "bf16")
    assert "behind 0.001 s of compute" in head
    assert devices.split()[1:] == ["8", "64", "512"]
    size = sum(exchanged_bytes(networks(trunk, objective), 8, 1)) / 1e9
    assert sharded.split()[3:5] == [f"{size:.2f}", f"({size / 1e-3:.1f})"]
    assert size / 1e-3 > 1
