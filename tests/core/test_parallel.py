"""Work over several processes: results in the order of the items, and how many processes are allowed."""

from __future__ import annotations

import pytest
import torch

from core.errors import ConfigError
from core.parallel import check_devices, in_order


def test_results_come_in_the_order_of_the_items_and_no_later_than_they_can():
    taken: list[int] = []

    def finished():
        for item in (5, 1, 0, 3):
            taken.append(item)
            yield item, f"result {item}"

    results = in_order(finished(), (0, 1, 3, 5))
    assert next(results) == "result 0"
    assert taken == [5, 1, 0]  # the last one is not waited for
    assert list(results) == ["result 1", "result 3", "result 5"]


@pytest.mark.parametrize(("gpus", "devices", "problem"), [(0, 0, "at least 1"), (4, 5, "the 4 GPUs"), (4, 4, None)])
def test_devices(gpus, devices, problem, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    if problem is None:
        check_devices(devices)
        return
    with pytest.raises(ConfigError, match=problem):
        check_devices(devices)
