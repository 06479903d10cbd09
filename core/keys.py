"""Randomness as a function of its purpose, never a stream.

A draw is keyed by (seed, modality, epoch, sample, purpose). No generator state is ever saved, any step can be
replayed alone, and the number of devices, workers or samples per batch changes nothing.
"""

from __future__ import annotations

import hashlib

import torch


def key(*parts: int | str) -> int:
    """A 63-bit integer from the parts: equal in every process, on every machine.

    Python's own `hash` is not used, since it changes between processes for strings. Any text is allowed, also the name
    of a file that is not UTF-8.
    """
    name = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """A CPU generator seeded by `key(*parts)`."""
    return torch.Generator("cpu").manual_seed(key(*parts))
