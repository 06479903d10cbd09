"""The network of FID, sFID and the inception score: Inception-v3 with the weights of 2015-12-05.

FID is defined by one TensorFlow graph (`classify_image_graph_def.pb`), which the ADM evaluator
(openai/guided-diffusion, evaluations/evaluator.py) still runs. Its weights are published for PyTorch twice with equal
names: `pt_inception-2015-12-05-6726825d.pth` (mseitzer/pytorch-fid) and `weights-inception-2015-12-05-6726825d.pth`
(toshas/torch-fidelity).

Why not torch-fidelity's own class, to which this one is equal bit for bit (tests/parity/test_torch_fidelity.py): its
import takes torchvision, which a CPU build of torch cannot load (0.4.0: 3.6 s, 158 MiB and 1,093 modules, against 0.01
s, 1 MiB and 7); it hands out none of the values that sFID is made of; and it unpickles whatever its file holds.

What is read off, in the evaluator's order of values, so that its reference statistics (mu, mu_s) fit:
- pool: `pool_3:0`, 2048 values.
- spatial: `mixed_6/conv:0`, channels 0..6. That is the 1x1 branch of Mixed_6d after its ReLU, 17 x 17 x 7 = 2023
  values in the order (h, w, c). Ports that flatten (c, h, w) get the same sFID, but their mu_s does not fit ADM's.
- logits: pool times the softmax weights WITHOUT the bias, 1008 classes, as the evaluator computes its inception score.

Preparation: 8-bit levels, then TensorFlow-1 bilinear to 299 x 299 (output pixel i samples input i * in / out, neither
half-pixel centers nor antialiasing), then (x - 128) / 128. The libraries differ here: pytorch-fid 0.3 samples at
half-pixel centers and scales by 2 x / 255 - 1, clean-fid resizes antialiased bicubic; their FIDs differ from these.

The graph alone is equal to that of pytorch-fid 0.3.0 too.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from modalities.evaluation.networks.base import Features, device_of, expect, freeze, no_weights, read_weights, to_levels

SIDE = 299
SPATIAL_CHANNELS = 7
TAKES = (
    "the file pt_inception-2015-12-05-6726825d.pth (release `fid_weights` of github.com/mseitzer/pytorch-fid) or "
    "weights-inception-2015-12-05-6726825d.pth (releases of github.com/toshas/torch-fidelity), 91 MB"
)


def resize_tf1(x: Tensor, side: int = SIDE) -> Tensor:
    """(B, 3, H, W) -> (B, 3, side, side) as TensorFlow 1's ResizeBilinear(align_corners=False)."""

    def along(x: Tensor, dim: int) -> Tensor:
        length = x.shape[dim]
        place = torch.arange(side, dtype=torch.float32, device=x.device) * torch.tensor(length / side)
        low = place.long()
        high = (low + 1).clamp_max(length - 1)
        share = (place - low).view(-1, *[1] * (-1 - dim))
        near, far = x.index_select(dim, low), x.index_select(dim, high)
        return near + (far - near) * share

    return along(along(x, -1), -2)


class Conv(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, ins: int, outs: int, kernel: tuple[int, int], stride: int = 1, pad: bool = True):
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2) if pad else 0
        self.conv = nn.Conv2d(ins, outs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outs, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.bn(self.conv(x)))


def average(x: Tensor) -> Tensor:
    """3 x 3 mean that does not count the padding, as TensorFlow's."""
    return functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


def largest(x: Tensor) -> Tensor:
    return functional.max_pool2d(x, 3, 1, 1)


def halve(x: Tensor) -> Tensor:
    return functional.max_pool2d(x, 3, 2)


# A step of a branch: (name, channels out, kernel). In a halving block the last step has stride 2 and no padding.
Step = tuple[str, int, tuple[int, int]]
ONE, THREE, FIVE, ROW, COLUMN = (1, 1), (3, 3), (5, 5), (1, 7), (7, 1)


class Mixed(nn.Module):
    """Branches over the same input, concatenated; the last branch pools.

    Args:
        branches: lists of steps; a list as the last step is a fork, whose results are concatenated.
        pooled: channels of the 1 x 1 convolution after the pooling, 0 in a halving block, which has none.
    """

    def __init__(self, ins: int, branches: Sequence[Sequence[Step | list[Step]]], pool=average, pooled: int = 0):
        super().__init__()
        self.chains: list[list[list[str]]] = []
        self.pool = pool
        for branch in branches:
            width, chain = ins, []
            for place, step in enumerate(branch):
                fork = step if isinstance(step, list) else [step]
                last = place == len(branch) - 1 and not pooled
                for name, outs, kernel in fork:
                    self.add_module(name, Conv(width, outs, kernel, stride=2 if last else 1, pad=not last))
                chain.append([name for name, _, _ in fork])
                width = fork[0][1]
            self.chains.append(chain)
        self.branch_pool = Conv(ins, pooled, ONE) if pooled else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        results = []
        for chain in self.chains:
            y = x
            for fork in chain:
                y = torch.cat([getattr(self, name)(y) for name in fork], 1)
            results.append(y)
        return torch.cat([*results, self.branch_pool(self.pool(x))], 1)


def mixed_5(ins: int, pooled: int) -> Mixed:  # 35 x 35
    double = [("branch3x3dbl_1", 64, ONE), ("branch3x3dbl_2", 96, THREE), ("branch3x3dbl_3", 96, THREE)]
    return Mixed(
        ins, [[("branch1x1", 64, ONE)], [("branch5x5_1", 48, ONE), ("branch5x5_2", 64, FIVE)], double], pooled=pooled
    )


def mixed_6(mid: int) -> Mixed:  # 17 x 17, 768 -> 768
    single = [("branch7x7_1", mid, ONE), ("branch7x7_2", mid, ROW), ("branch7x7_3", 192, COLUMN)]
    outs, kernels = (mid, mid, mid, mid, 192), (ONE, COLUMN, ROW, COLUMN, ROW)
    double = [(f"branch7x7dbl_{i}", *step) for i, step in enumerate(zip(outs, kernels, strict=True), start=1)]
    return Mixed(768, [[("branch1x1", 192, ONE)], single, double], pooled=192)


def mixed_7(ins: int, pool) -> Mixed:  # 8 x 8, -> 2048
    def fork(name: str) -> list[Step]:
        return [(f"{name}a", 384, (1, 3)), (f"{name}b", 384, (3, 1))]

    single = [("branch3x3_1", 384, ONE), fork("branch3x3_2")]
    double = [("branch3x3dbl_1", 448, ONE), ("branch3x3dbl_2", 384, THREE), fork("branch3x3dbl_3")]
    return Mixed(ins, [[("branch1x1", 320, ONE)], single, double], pool, pooled=192)


class InceptionGraph(nn.Module):
    """(B, 3, 299, 299) -> pool (B, 2048), spatial (B, 2023), logits (B, 1008). Names as in the published files."""

    def __init__(self):
        super().__init__()
        self.Conv2d_1a_3x3 = Conv(3, 32, THREE, stride=2, pad=False)
        self.Conv2d_2a_3x3 = Conv(32, 32, THREE, pad=False)
        self.Conv2d_2b_3x3 = Conv(32, 64, THREE)
        self.Conv2d_3b_1x1 = Conv(64, 80, ONE)
        self.Conv2d_4a_3x3 = Conv(80, 192, THREE, pad=False)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = mixed_5(192, 32), mixed_5(256, 64), mixed_5(288, 64)
        double = [("branch3x3dbl_1", 64, ONE), ("branch3x3dbl_2", 96, THREE), ("branch3x3dbl_3", 96, THREE)]
        self.Mixed_6a = Mixed(288, [[("branch3x3", 384, THREE)], double], halve)
        self.Mixed_6b, self.Mixed_6c = mixed_6(128), mixed_6(160)
        self.Mixed_6d, self.Mixed_6e = mixed_6(160), mixed_6(192)
        single = [("branch3x3_1", 192, ONE), ("branch3x3_2", 320, THREE)]
        sevens = [("branch7x7x3_1", 192, ONE), ("branch7x7x3_2", 192, ROW), ("branch7x7x3_3", 192, COLUMN)]
        self.Mixed_7a = Mixed(768, [single, [*sevens, ("branch7x7x3_4", 192, THREE)]], halve)
        # The graph of 2015 pools the last block by the maximum. Other Inceptions average; FID is this one.
        self.Mixed_7b, self.Mixed_7c = mixed_7(1280, average), mixed_7(2048, largest)
        self.fc = nn.Linear(2048, 1008)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = halve(self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x))))  # (B, 64, 73, 73)
        x = halve(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)))  # (B, 192, 35, 35)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))  # (B, 288, 35, 35)
        x = self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))  # (B, 768, 17, 17)
        x = self.Mixed_6d(x)
        spatial = x[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)  # branch1x1 comes first in the block
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(self.Mixed_6e(x))))  # (B, 2048, 8, 8)
        pool = x.mean((2, 3))
        return pool, spatial, pool @ self.fc.weight.T


class Inception(nn.Module):
    """Images (B, 3, H, W) in [-1, 1] -> Features (2048, 2023, 1008 values).

    Args:
        path: one of the two published files.

    Raises:
        CheckpointError: the file is missing, or is not these weights exactly.
    """

    name = "inception-v3 (FID weights)"
    kind = "inception"
    distance = "FID"

    def __init__(self, path: str):
        super().__init__()
        with torch.device("meta"):
            self.graph = InceptionGraph()
        self.graph.to_empty(device="cpu")
        load_strictly(self.graph, path)
        freeze(self)

    @torch.inference_mode()
    def forward(self, media: Tensor) -> Features:
        expect(media, "image", self.name)
        levels = to_levels(media.to(device_of(self)))
        return Features(*self.graph((resize_tf1(levels) - 128) / 128))


def load_strictly(graph: InceptionGraph, path: str) -> None:
    """All weights of the file into the graph, none missing, none left."""
    if not Path(path).is_file():
        raise no_weights("inception", path, TAKES, "there is no such file")
    state = read_weights("inception", path, TAKES)
    # One of the files counts batches, the other does not; nothing reads the counts.
    counts = [name for name in graph.state_dict() if name.endswith("num_batches_tracked")]
    wanted = {name: tuple(value.shape) for name, value in graph.state_dict().items() if name not in counts}
    found = state if isinstance(state, dict) else {}
    shapes = {name: tuple(getattr(value, "shape", ())) for name, value in found.items() if name not in counts}
    if shapes != wanted:
        wrong = sorted(name for name in wanted | shapes if wanted.get(name) != shapes.get(name))
        name = wrong[0]
        raise no_weights(
            "inception",
            path,
            TAKES,
            f"{len(wrong)} of {len(wanted)} entries differ, first {name}: {shapes.get(name, 'missing')}, "
            f"expected {wanted.get(name, 'no such entry')}",
        )
    graph.load_state_dict(found | {name: torch.zeros((), dtype=torch.long) for name in counts})
