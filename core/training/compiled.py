"""torch.compile block by block, with a graph for every shape of a step."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from core.training.say import say
from core.trunk.layers import blocks_of

# Of a block in one shape: the first (whose input needs no gradient), the others and the teacher's, in training and in
# evaluation, and of two sizes of a microbatch.
GRAPHS = 12


def compile_blocks(networks: Sequence[nn.Module], shapes: int) -> None:
    """Compile the blocks of all networks, in place; each shape of a step has graphs of its own, made when it is first
    met. Without them the second shape would be compiled for any, and from the eighth graph on nothing would be.

    Args:
        shapes: of the streams, and of their sizes.
    """
    from torch._dynamo import config  # slow to import, and of the process: graphs are counted by function, not block

    config.recompile_limit = max(config.recompile_limit, GRAPHS * shapes)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, GRAPHS * shapes)
    for network in networks:
        for block in blocks_of(network):
            block.compile(dynamic=False)
    say(f"compile: graphs for {shapes} shape{'s' * (shapes != 1)} of a step, made when each is first met")
