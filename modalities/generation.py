"""From a request to media: noise, sampler, decoding. The same seed gives the same bytes for any batch size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from autoencoders.base import Whitening
from core.sampler import SamplerConfig, initial_noise, sample
from core.types import Context, TokenBatch
from modalities.base import ModalityAdapter, make_segment
from modalities.conditions import Conditions, Prompt
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
) -> Iterator[Tensor]:
    """Media tensors, one for each prompt, in order.

    Sample i draws its noise from (seed, modality, i) alone. `progress` is called after every sampler step with the
    number of samples that took it.
    """
    adapter, whitening = model.adapters[modality], model.whitening[modality]
    length = adapter.ids().shape[0]
    autoencoder_device = model.device if adapter.has_weights else torch.device("cpu")
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
        (tokens,) = sample(model.trunk, batch.to(model.device), noise, config, seed=seed, progress=tick)
        for media in adapter.decode(whitening.unwhiten(tokens.to(autoencoder_device))).cpu():
            yield media if known is None else torch.where(known.kept, known.media, media)


def _tick(progress: Callable[[int], None], samples: int, _step: int, _state: tuple[Tensor, ...]) -> None:
    progress(samples)
