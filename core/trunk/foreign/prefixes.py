"""What wrappers put before the names of weights, taken off again: torch.compile, DDP, FSDP, Lightning, EMA packages."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

from core.errors import CheckpointError

# Of a wrapped part, anywhere in a name.
INSIDE = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
# Of a wrapped whole, one behind the other at the beginning of a name.
AVERAGED = frozenset({"ema", "ema_model"})
LEADING = AVERAGED | {"module", "model"}


def bare_name(name: str) -> tuple[str, str]:
    """What was taken off, such as 'module._orig_mod.', and the rest of the name."""
    taken, kept = [], []
    parts = name.split(".")
    for place, part in enumerate(parts):
        last = place == len(parts) - 1
        (taken if not last and (part in INSIDE or (not kept and part in LEADING)) else kept).append(part)
    return "".join(f"{part}." for part in taken), ".".join(kept)


def strip_prefixes(state: dict[str, Any], source: str) -> tuple[dict[str, Any], list[str]]:
    """The state under its bare names, and a line for every prefix that was taken off.

    Where the weights and their average lie side by side (`model.` and `ema.`), the average is taken.

    Raises:
        CheckpointError: several names become one.
    """
    found: dict[str, dict[str, str]] = defaultdict(dict)  # prefix -> bare name -> name
    for name in state:
        prefix, bare = bare_name(name)
        found[prefix][bare] = name
    counts = Counter(bare for names in found.values() for bare in names)
    clashing = [prefix for prefix, names in found.items() if any(counts[bare] > 1 for bare in names)]
    averaged = [prefix for prefix in clashing if AVERAGED & set(prefix.split("."))]
    notes = []
    if clashing and len(averaged) != 1:
        bare = next(bare for bare, count in counts.items() if count > 1)
        same = [names[bare] for names in found.values() if bare in names]
        raise CheckpointError(f"{source}: {' and '.join(same)} are one weight, {bare}, once their prefixes are off")
    for prefix in clashing:
        if prefix not in averaged:
            count = len(found.pop(prefix))
            notes.append(f"left out: {count} names {_under(prefix)}; those under {averaged[0]} are their average")
    notes = [f"prefix {prefix} taken off {len(names)} names" for prefix, names in found.items() if prefix] + notes
    return {bare: state[name] for names in found.values() for bare, name in names.items()}, notes


def _under(prefix: str) -> str:
    return f"under {prefix}" if prefix else "without a prefix"
