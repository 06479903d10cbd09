"""The default conditions of previews: those of the data."""

from __future__ import annotations

from itertools import cycle, islice

from core.errors import DataError
from modalities.base import Source
from modalities.conditioning.conditions import Conditions, Prompt
from modalities.data.order import Order

LOOKED_AT = 256  # records, at most


def data_prompts(
    source: Source, conditions: Conditions, stream: str, count: int, seed: int, choice: str | None = None
) -> list[Prompt]:
    """Different captions (with their stored features) or classes, repeated where the data have fewer than `count`.

    The same for every call with the same data and seed. Media are not decoded.

    Args:
        choice: which of several captions, a name of `CAPTION_CHOICES`; None is the longest.

    Raises DataError where none of the records that are looked at has a condition.
    """
    found: dict[str, Prompt] = {}
    order, problem = Order(source, seed, stream), "no records"
    for position in range(min(len(source), LOOKED_AT)):
        try:
            prompt = conditions.chosen(source.read(order.at(position)[1]), choice)
        except DataError as error:
            problem = str(error)
            continue
        found.setdefault(prompt.text, prompt)
        if len(found) == count:
            break
    if not found:
        raise DataError(f"{stream}: no condition for a preview in the data; the last record: {problem}")
    return list(islice(cycle(found.values()), count))
