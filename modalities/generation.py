"""From a request to media: noise, sampler, decoding. The same seed gives the same bytes for any batch size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from autoencoders.base import Whitening
from core.errors import NotFiniteError
from core.sampler import SamplerConfig, initial_noise, sample
from core.types import Context, TokenBatch, map_tensors
from modalities.base import ModalityAdapter, make_segment
from modalities.conditions import ConditionConfig, Conditions, Prompt
from modalities.text import TextEncoder


@dataclass(frozen=True)
class Generator:
    """A trunk with everything around it that turns its tokens into media.

    Attributes:
        text: the frozen text encoder of the run, read when a prompt needs it; None where it has none.
    """

    trunk: nn.Module
    adapters: dict[str, ModalityAdapter]
    whitening: dict[str, Whitening]
    conditions: Conditions
    device: torch.device
    text: TextEncoder | None = None

    def context(self, prompts: Sequence[str | Prompt]) -> Context:
        """The prompts as the trunk reads them, none dropped."""
        dropped = torch.zeros(len(prompts), dtype=torch.bool)
        context = self.conditions.context(prompts, dropped)
        return context if self.text is None else self.text.complete(context, self.conditions.texts(prompts, dropped))


@dataclass(frozen=True)
class Known:
    """Media of which a part is to be kept.

    Attributes:
        media: (*shape) as the adapter loads it.
        given: (N,) bool, tokens that lie within the known part; the trunk sees these.
        kept: bool that broadcasts to `media`: the known part, which comes back exactly as it is in `media`.
    """

    media: Tensor
    given: Tensor
    kept: Tensor


def generate(
    model: Generator,
    modality: str,
    prompts: Sequence[str | Prompt],
    config: SamplerConfig,
    seed: int,
    known: Known | None = None,
    batch_size: int = 8,
    progress: Callable[[int], None] | None = None,
    negative: str | None = None,
) -> Iterator[Tensor]:
    """Media tensors, one for each prompt, in order.

    Sample i draws its noise from (seed, modality, i) alone. `progress` is called after every sampler step with the
    number of samples that took it. Guidance leads away from `negative`, a text or class name, in place of the null
    condition.

    Raises NotFiniteError for a sample that holds NaN or infinite numbers.
    """
    adapter, whitening = model.adapters[modality], model.whitening[modality]
    length = adapter.ids().shape[0]
    autoencoder_device = model.device if adapter.has_weights else torch.device("cpu")

    def moved(tensor: Tensor) -> Tensor:
        return tensor.to(model.device)

    for first in range(0, len(prompts), batch_size):
        chunk = prompts[first : first + batch_size]
        keys = tuple(f"{modality}/{first + i}" for i in range(len(chunk)))
        x0, given = torch.zeros(len(chunk), length, adapter.channels), None
        if known is not None:
            tokens = adapter.encode(known.media[None].to(autoencoder_device)).cpu()
            x0 = whitening.whiten(tokens).expand(len(chunk), -1, -1).contiguous()
            given = known.given[None].expand(len(chunk), -1)
        segment = make_segment(adapter, x0, given)
        batch = TokenBatch((segment,), model.context(chunk), keys)
        noise = tuple(part.to(model.device) for part in initial_noise(seed, batch))
        tick = None if progress is None else partial(_tick, progress, len(chunk))
        null = None if negative is None else map_tensors(model.context([negative] * len(chunk)), moved)
        (tokens,) = sample(model.trunk, batch.to(model.device), noise, config, seed=seed, progress=tick, null=null)
        _check_finite(tokens, keys)
        for media in adapter.decode(whitening.unwhiten(tokens.to(autoencoder_device))).cpu():
            yield media if known is None else torch.where(known.kept, known.media, media)


def _check_finite(tokens: Tensor, keys: tuple[str, ...]) -> None:
    for key, wrong in zip(keys, (~tokens.isfinite()).sum(dim=(1, 2)).tolist(), strict=True):
        if wrong:
            raise NotFiniteError(
                f"sample {key}: {wrong} of its {tokens[0].numel()} numbers are NaN or infinite; is a weight of this "
                "checkpoint, or is the guidance scale or another setting of the sampler far too large?"
            )


def guidance_problem(condition: ConditionConfig, config: SamplerConfig) -> str | None:
    """Why this run's condition gives guidance nothing to work with; None where it does, or where there is none."""
    if config.guidance == 1:
        return None
    if condition.kind == "none":
        return (
            f"guidance: {config.guidance:g}, and this run was trained without a condition (condition.kind: none), so "
            "that it changes nothing; set it to 1"
        )
    if condition.dropout == 0:
        return (
            f"guidance: {config.guidance:g}, and the condition of this run was never dropped in training "
            "(condition.dropout: 0): its null condition never learned anything, and leading away from it means nothing"
        )
    return None


def _tick(progress: Callable[[int], None], samples: int, _step: int, _state: tuple[Tensor, ...]) -> None:
    progress(samples)
