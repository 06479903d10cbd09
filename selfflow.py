"""The library: `import selfflow as sf` has what a training or sampling loop of your own needs.

    trunks       SiT, MMDiT, DDT and their configurations; FeatureLayers asks for features, TrunkOutput has them
    methods      method(NAME): noising and alignment of every row of the method table; METHODS has the names
    training     token_batch, draw, Objective, total_loss, make_teacher, update_teacher, CheckpointStore
    your own     AlignmentInputs and LossTerm: what an alignment term gets and returns
    sampling     sample, initial_noise, SamplerConfig, PartSampling
    runs         from_pretrained(RUN).generate(STREAM, PROMPTS)

t = 0 is data and t = 1 is noise; velocity is noise minus data. Layers are 1-based: "layer 8" is the
output of blocks[7].
"""

from __future__ import annotations

from configs.methods import METHODS, Method, method
from configs.runs import LoadedRun
from configs.runs import load_run as from_pretrained
from core.alignment.base import AlignmentInputs, AlignmentTerm
from core.draw import draw, token_batch
from core.errors import SelfFlowError
from core.noising import NoiseSample, NoisingConfig
from core.objective import Objective, total_loss
from core.sampling.parts import PartSampling
from core.sampling.sampler import SamplerConfig, initial_noise, sample
from core.schedule import TimestepConfig
from core.training.checkpoint import CheckpointStore
from core.training.ema import make_teacher, update_teacher
from core.trunk.context import ContextConfig
from core.trunk.ddt import DDT, DDTConfig
from core.trunk.mmdit import MMDiT, MMDiTConfig
from core.trunk.sit import SiT, SiTConfig
from core.types import Context, FeatureLayers, LossTerm, NoiseLevels, Segment, TokenBatch, TrunkOutput

__all__ = [
    "DDT",
    "METHODS",
    "AlignmentInputs",
    "AlignmentTerm",
    "CheckpointStore",
    "Context",
    "ContextConfig",
    "DDTConfig",
    "FeatureLayers",
    "LoadedRun",
    "LossTerm",
    "MMDiT",
    "MMDiTConfig",
    "Method",
    "NoiseLevels",
    "NoiseSample",
    "NoisingConfig",
    "Objective",
    "PartSampling",
    "SamplerConfig",
    "Segment",
    "SelfFlowError",
    "SiT",
    "SiTConfig",
    "TimestepConfig",
    "TokenBatch",
    "TrunkOutput",
    "draw",
    "from_pretrained",
    "initial_noise",
    "make_teacher",
    "method",
    "sample",
    "token_batch",
    "total_loss",
    "update_teacher",
]
