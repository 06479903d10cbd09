"""torch.compile block by block, with a graph for every shape of a step: when a run does so, and what if it fails.

Compiled kernels round differently, so whether a run is compiled belongs to the run. It is chosen before its first step,
of nothing that is measured, and stored in every checkpoint: the same configuration gives the same numbers on the same
machine, and a run that is interrupted goes on as it began.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from core.errors import ConfigError
from core.training.say import say
from core.trunk.layers import blocks_of
from core.user_cache import user_cache

# Of a block in one shape: the first (whose input needs no gradient), the others and the teacher's, in training and in
# evaluation, and of two sizes of a microbatch.
GRAPHS = 12
# Steps for each shape from which on `auto` compiles. On a CPU a shape of the quickstart takes about 22 s to compile and
# a step then saves 0.067 s (docs/benchmarks.md): 330 steps win it back, and twice as many repay the wait. On a GPU
# nothing has been measured; a minute for a shape, and 30 ms saved by a step, would be won back by 2,000.
WORTH = {"cpu": 660, "cuda": 2000}


@dataclass(frozen=True)
class Choice:
    """Whether the blocks are compiled; `why` is for people, and empty where there was nothing to choose."""

    compiled: bool
    why: str = ""


def choose_compiled(
    wanted: str, steps: int, shapes: int, device: str, processes: int, before: bool | None, missing: str
) -> Choice:
    """
    Args:
        wanted: `training.compile`, auto, on or off.
        steps: of the whole run.
        shapes: of the streams, and of their sizes.
        device: cpu or cuda.
        before: what the steps that the run has done were; None for a run that begins.
        missing: what `missing_compiler` says.

    Raises ConfigError where `on` is asked for and there is no compiler.
    """
    if wanted == "off":
        return Choice(False)
    if wanted == "on":
        if missing:
            raise ConfigError(f"training.compile: 'on' was asked for, but {missing}; allowed without: auto, off")
        return Choice(True)
    if before is not None:
        if before and missing:
            return Choice(False, f"{missing}; the steps before were compiled, and those from here on round differently")
        return Choice(before)
    if processes > 1:
        return Choice(False, "on several devices with training.compile=on alone")
    enough = WORTH[device] * shapes
    if steps < enough:
        return Choice(False, f"{steps:,} steps do not repay the compilation; {enough:,} would")
    return Choice(False, missing) if missing else Choice(True, f"{steps:,} steps repay the compilation")


def missing_compiler(device: str) -> str:
    """What torch.compile needs and does not find, or "" where it is all there. Nothing is compiled to see that."""
    name = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if device == "cuda":
        if importlib.util.find_spec("triton") is None:
            return "there is no triton"
        name = os.environ.get("CC") or "gcc or clang"
    if not any(shutil.which(command.split()[0]) for command in name.split(" or ")):
        return f"there is no {'C' if device == 'cuda' else 'C++'} compiler ({name})"
    headers = Path(sysconfig.get_path("include"))
    return "" if (headers / "Python.h").exists() else f"Python's header files are not there ({headers / 'Python.h'})"


def compile_blocks(networks: Sequence[nn.Module], shapes: int) -> None:
    """Compile the blocks of all networks, in place; each shape of a step has graphs of its own, made when it is first
    met. Without them the second shape would be compiled for any, and from the eighth graph on nothing would be.

    Kernels stay in TORCHINDUCTOR_CACHE_DIR, by default a folder of this program under the user's cache directory.

    Args:
        shapes: of the streams, and of their sizes.
    """
    cache = Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR") or user_cache("compiled"))
    with contextlib.suppress(OSError):  # then torch's own, in the folder of temporary files
        cache.mkdir(parents=True, exist_ok=True)
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache)
    # Slow to import, and of the process: graphs are counted by function, not block.
    from torch._dynamo import config
    from torch._inductor import config as inductor

    config.recompile_limit = max(config.recompile_limit, GRAPHS * shapes)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, GRAPHS * shapes)
    inductor.deterministic = True  # on a GPU, kernels are otherwise chosen by timing, and a resumed run may get others
    for network in networks:
        for block in blocks_of(network):
            block.compile(dynamic=False)
    say(f"compile: graphs for {shapes} shape{'s' * (shapes != 1)} of a step, made when each is met; kept in {cache}")


def run_as_written(networks: Sequence[nn.Module]) -> None:
    """Undo `compile_blocks`."""
    for network in networks:
        for block in blocks_of(network):
            # What nn.Module.compile sets; there is no inverse of it.
            block._compiled_call_impl = None  # pyright: ignore[reportPrivateUsage]


def is_of_compiler(error: BaseException) -> bool:
    """Whether an error is of the compilation, and not of what was compiled."""
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import CppCompileError, InvalidCxxCompiler

    return isinstance(error, (TorchDynamoException, CppCompileError, InvalidCxxCompiler))
