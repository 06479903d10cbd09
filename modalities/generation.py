"""From a request to media: noise, sampler, decoding. The same seed gives the same bytes for any batch size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from torch import Tensor

from autoencoders.base import LatentNormalization
from core.errors import ConfigError, NotFiniteError
from core.sampling.plan import level_schedule
from core.sampling.sampler import SamplerConfig, initial_noise, sample
from core.trunk.ddt import DDT
from core.trunk.mmdit import MMDiT
from core.trunk.sit import SiT
from core.trunk.wan import Wan
from core.types import Context, TokenBatch, map_tensors
from modalities.base import Known
from modalities.conditioning import TextEncoder
from modalities.conditioning.conditions import ConditionConfig, Conditions, Prompt
from modalities.streams import Part, Parts, make_segments
from modalities.watching import Expectation, Tokens

Trunk = MMDiT | SiT | DDT | Wan

# Called after a step with a function that decodes what the samples of a batch are expected to become: name of a part
# -> (B, *media).
Watch = Callable[[Callable[[], dict[str, Tensor]]], object]


@dataclass(frozen=True)
class Generator:
    """A trunk with everything around it that turns its tokens into media.

    Attributes:
        parts: stream -> its parts.
        normalization: by modality.
        text: the frozen text encoder of the run, read when a prompt needs it; None where it has none.
    """

    trunk: Trunk
    parts: Mapping[str, Parts]
    normalization: Mapping[str, LatentNormalization]
    conditions: Conditions
    device: torch.device
    text: TextEncoder | None = None

    def context(self, prompts: Sequence[str | Prompt]) -> Context:
        """The prompts as the trunk reads them, none dropped."""
        return self.conditions.raw(prompts, torch.zeros(len(prompts), dtype=torch.bool)).complete(self.text)

    def encode(self, part: Part, media: Tensor) -> Tensor:
        """(B, *media) -> normalized tokens (B, N, C) on the CPU; means, where the autoencoder samples."""
        latents = part.adapter.encode(media.to(self._autoencoder_device(part)))
        return self.normalization[part.adapter.modality].normalize(latents).cpu()

    def decode(self, part: Part, tokens: Tensor) -> Tensor:
        """The inverse of `encode`."""
        latents = self.normalization[part.adapter.modality].denormalize(tokens.to(self._autoencoder_device(part)))
        return part.adapter.decode(latents).cpu()

    def _autoencoder_device(self, part: Part) -> torch.device:
        return self.device if part.adapter.has_weights else torch.device("cpu")


def generate(
    model: Generator,
    stream: str,
    prompts: Sequence[str | Prompt],
    config: SamplerConfig,
    seed: int,
    known: Mapping[str, Known] | Sequence[Mapping[str, Known]] | None = None,
    batch_size: int = 8,
    progress: Callable[[int], object] | None = None,
    negative: str | None = None,
    watch: Watch | None = None,
    numbers: Sequence[int] | None = None,
) -> Iterator[dict[str, Tensor]]:
    """Media of every part by its name, for each prompt, in order; not of parts of which `config` makes nothing.

    Sample i draws its noise from (seed, stream, i) alone.

    Args:
        known: name of a part -> what is kept of it; one for all prompts, or one for each.
        progress: called after every sampler step with the number of samples that took it.
        negative: text or class name that guidance leads away from, in place of the null condition.
        watch: called after every sampler step; what it raises ends the generation.
        numbers: i of each prompt, of one process's share; 0, 1, ... unless given.

    Raises NotFiniteError for a sample that holds NaN or infinite numbers, and ConfigError where a part that was given
    in every sample of the training is not given.
    """
    parts, known = model.parts[stream], known or {}
    numbers = range(len(prompts)) if numbers is None else numbers
    each = [known] * len(prompts) if isinstance(known, Mapping) else list(known)
    for name, part in made_parts(parts, config).items():
        if part.given and not all(name in row for row in each):
            raise ConfigError(
                f"{name}: is given in every sample of the training (parts.{name}.given), and not here; the model has "
                "not learned to make it"
            )
    # Most often one for all, which is encoded once.
    encode = lru_cache(1)(lambda place: _known_tokens(model, parts, each[place]))

    def moved(tensor: Tensor) -> Tensor:
        return tensor.to(model.device)

    for first in range(0, len(prompts), batch_size):
        chunk = prompts[first : first + batch_size]
        keys = tuple(f"{stream}/{number}" for number in numbers[first : first + batch_size])
        rows = [encode(0 if isinstance(known, Mapping) else first + i) for i in range(len(chunk))]
        tokens = [torch.cat(column) for column in zip(*(clean for clean, _ in rows), strict=True)]
        conditioning_mask = torch.cat([mask for _, mask in rows])
        segments = make_segments(parts, tokens, conditioning_mask if conditioning_mask.any() else None)
        batch = TokenBatch(segments, model.context(chunk), keys)
        noise = tuple(part.to(model.device) for part in initial_noise(seed, batch))
        tick = _each_step(model, parts, config, noise, len(chunk), progress, watch)
        null = None if negative is None else map_tensors(model.context([negative] * len(chunk)), moved)
        made = sample(model.trunk, batch.to(model.device), noise, config, seed=seed, progress=tick, null=null)
        _check_finite(made, keys)
        rows = dict(zip(parts, made, strict=True))
        media = {name: model.decode(part, rows[name]) for name, part in made_parts(parts, config).items()}
        for index in range(len(chunk)):
            yield {name: _kept(each[first + index].get(name), row[index]) for name, row in media.items()}


def made_parts(parts: Parts, config: SamplerConfig) -> dict[str, Part]:
    """The parts that are generated: neither absent nor omitted."""
    unmade = {name for name, part in config.parts.items() if not part.sampled}
    return {name: part for name, part in parts.items() if name not in unmade}


def sampler_steps(parts: Parts, config: SamplerConfig) -> int:
    """How often `generate` reports progress for one sample: the steps of all parts, those together counted once."""
    return level_schedule(config, list(parts)).steps


def _known_tokens(model: Generator, parts: Parts, known: Mapping[str, Known]) -> tuple[list[Tensor], Tensor]:
    """Normalized tokens (1, N, C) of every part, 0 where nothing is known, and (1, L) bool which of them are given."""
    tokens, masks = [], []
    for name, part in parts.items():
        if name in known:
            tokens.append(model.encode(part, known[name].media[None]))
            masks.append(known[name].conditioning_mask)
        else:
            tokens.append(torch.zeros(1, len(part.ids), part.adapter.channels))
            masks.append(torch.zeros(len(part.ids), dtype=torch.bool))
    return tokens, torch.cat(masks)[None]


def _kept(known: Known | None, media: Tensor) -> Tensor:
    return media if known is None else torch.where(known.kept, known.media, media)


def _check_finite(tokens: Sequence[Tensor], keys: tuple[str, ...]) -> None:
    """(B, N, C) of every part."""
    count = sum(part[0].numel() for part in tokens)
    wrongs = torch.stack([(~part.isfinite()).sum(dim=(1, 2)) for part in tokens]).sum(dim=0)
    for key, wrong in zip(keys, wrongs.tolist(), strict=True):
        if wrong:
            raise NotFiniteError(
                f"sample {key}: {wrong} of its {count} numbers are NaN or infinite; is a weight of this "
                "checkpoint, or is the guidance scale or another setting of the sampler far too large?"
            )


def guidance_problem(condition: ConditionConfig, config: SamplerConfig) -> str | None:
    """Why this run's condition gives guidance nothing to work with; None where it does, or where there is none."""
    scale = config.guidance()
    if scale == 1:
        return None
    if condition.kind == "none":
        return (
            f"cfg_scale: {scale:g}, and this run was trained without a condition (condition.kind: none), so "
            "that it changes nothing; set it to 1"
        )
    if condition.dropped() == 0:
        return (
            f"cfg_scale: {scale:g}, and the condition of this run was never dropped in training "
            "(condition.cfg_dropout: 0): its null condition was never trained, and guidance away from it means nothing"
        )
    return None


def _each_step(
    model: Generator,
    parts: Parts,
    config: SamplerConfig,
    noise: tuple[Tensor, ...],
    samples: int,
    progress: Callable[[int], object] | None,
    watch: Watch | None,
) -> Callable[[int, tuple[Tensor, ...]], None] | None:
    """What the sampler calls after every step; None where nobody wants to know."""
    if progress is None and watch is None:
        return None
    expectation = None
    if watch is not None:

        def decoded(expected: Callable[[], Tokens]) -> dict[str, Tensor]:
            return {name: model.decode(parts[name], tokens) for name, tokens in expected().items()}

        expectation = Expectation(config, list(parts), noise, lambda expected: watch(partial(decoded, expected)))

    def tick(step: int, state: tuple[Tensor, ...]) -> None:
        if progress is not None:
            progress(samples)
        if expectation is not None:
            expectation(step, state)

    return tick
