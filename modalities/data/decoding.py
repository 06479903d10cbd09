"""From a record to its media: the same for training, encoding and evaluation; a failure is the record's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from core.errors import ConfigError, DataError, described
from modalities.base import ModalityAdapter, Record


def decoded(adapter: ModalityAdapter, record: Record, generator: torch.Generator) -> Tensor:
    """Media of a record, not augmented.

    Raises:
        DataError: the record cannot be used; also for any exception of a decoder (a damaged file must not end the work,
            and no list of what decoders raise is complete), and for values that are not finite.
        ConfigError: a package or a setting is wrong, for all records alike.
    """
    with guarded(record.origin):
        return finite(adapter.load(record, generator), record.origin)


@contextmanager
def guarded(origin: str) -> Iterator[None]:
    """Errors of a record's decoder as `decoded` raises them."""
    try:
        yield
    except (ConfigError, DataError):
        raise
    except Exception as error:
        raise DataError(f"{origin}: cannot be decoded: {described(error)}") from error


def finite(media: Tensor, origin: str) -> Tensor:
    """The same. Raises DataError for values that are not finite."""
    if not torch.isfinite(media).all():
        raise DataError(f"{origin}: the decoded media holds NaN or infinite values")
    return media
