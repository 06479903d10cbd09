"""Work over the machines of a Ray cluster, for `selfflow encode --engine ray`.

Ray hands out the items, starts a process again that died, with its item, and places one on each GPU. An item may
therefore be done twice: the work must be idempotent, as the publication of chunks is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from core.errors import SelfFlowError
from core.optional import need

Work = Callable[[Sequence[int]], Iterable[Any]]


def spread_over_ray(work: Work, items: Sequence[int], workers: int) -> Iterator[Any]:
    """What `work` yields for all items, in the order in which it is finished.

    The cluster is that of RAY_ADDRESS, or one of this machine alone.

    Args:
        work: called in each process for one item after the other; travels there once, and may keep what it has loaded.
        workers: processes; of a cluster with GPUs, one for each of them in any case.

    Raises:
        SelfFlowError: the first error of the work.
    """
    ray = need("ray", "--engine ray", "--devices and --shard work")
    pools = need("ray.util.actor_pool", "--engine ray", "--devices and --shard work")
    ray.init(ignore_reinit_error=True, log_to_driver=False, include_dashboard=False)
    try:
        gpus = int(ray.cluster_resources().get("GPU", 0))
        kind = ray.remote(max_restarts=-1, max_task_retries=-1, num_gpus=1 if gpus else 0, num_cpus=1)(Worker)
        pool = pools.ActorPool([kind.remote(work) for _ in range(gpus or workers)])
        try:
            for results in pool.map_unordered(lambda worker, item: worker.do.remote(item), items):
                yield from results
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, SelfFlowError):
                raise error.cause from None
            raise
    finally:
        ray.shutdown()


class Worker:
    """A process of the cluster."""

    def __init__(self, work: Work):
        self.work = work

    def do(self, item: int) -> list[Any]:
        return list(self.work([item]))
