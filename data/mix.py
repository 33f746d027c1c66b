"""Comparisons of several sources -> one set to train on and one held out, each record with the name of its source.

What any source holds out, no source trains on: a conversation that is held out, of whichever list, is left out of training (counted).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from data.holdout import find_places, hold_out, too_few
from data.schema import Comparison, DataError


@dataclass(frozen=True)
class MixedPart:
    """One source.

    Args:
        name: Different for each.
        train: Its records.
        held_out: Those that it holds out itself; None: it has no list of its own.
    """

    name: str
    train: Sequence[Comparison]
    held_out: Sequence[Comparison] | None = None


@dataclass(frozen=True)
class Mixed:
    """Both sides, source after source, and how many records to train on were left out as their conversation is held out."""

    train: list[Comparison]
    held_out: list[Comparison]
    left_out: Mapping[str, int]


def mix_parts(parts: Sequence[MixedPart], held_out: Sequence[Comparison] | None, eval_fraction: float, seed: int) -> Mixed:
    """Put sources together.

    Args:
        parts: In their order. Of one without a held-out list of its own, the share is held out that would be if it were alone; nothing
            where `held_out` is given.
        held_out: A list for those without one of their own; it goes by the name of the first of them.
        eval_fraction: The share.
        seed: Another one holds out other conversations.

    Raises:
        DataError: Of a source, too little can be used to hold something out.
    """
    train: dict[str, Sequence[Comparison]] = {}
    kept: list[Comparison] = []
    for part in parts:
        own, own_held_out = part.train, part.held_out
        if own_held_out is None and held_out is None:
            own, own_held_out = split_comparisons(part.train, eval_fraction, seed, part.name)
        train[part.name] = own
        kept += _name(part.name, own_held_out or ())
    if held_out is not None:
        first = next((part.name for part in parts if part.held_out is None), "eval")
        kept += _name(first, held_out)
    named = [(name, record) for name, records in train.items() for record in records]
    places = find_places([record.prompt for record in (*(record for _, record in named), *kept)], seed)
    is_kept = np.isin(places[: len(named)], places[len(named) :])
    left_out: dict[str, int] = {}
    for (name, _), leaks in zip(named, is_kept, strict=True):
        if leaks:
            left_out[name] = left_out.get(name, 0) + 1
    stays = [replace_source(name, record) for (name, record), leaks in zip(named, is_kept, strict=True) if not leaks]
    return Mixed(stays, kept, left_out)


def split_comparisons(records: Sequence[Comparison], share: float, seed: int, where: str) -> tuple[list[Comparison], list[Comparison]]:
    """Hold out whole conversations, as stages do it; returns (to train on, held out), each in their old order.

    Args:
        records: Of one list.
        share: Of conversations to hold out.
        seed: Another one holds out other ones.
        where: The list, for messages.

    Raises:
        DataError: Too little can be used to hold something out.
    """
    usable = np.array([record.has_pair for record in records])
    sources = np.array([record.source for record in records])
    held_out = hold_out(find_places([record.prompt for record in records], seed), usable, sources, share)
    if held_out is None:
        raise DataError([too_few(where, "comparisons", len(records))])
    train = [record for record, is_held_out in zip(records, held_out, strict=True) if not is_held_out]
    return train, [record for record, is_held_out in zip(records, held_out, strict=True) if is_held_out]


def replace_source(name: str, record: Comparison) -> Comparison:
    """Name the source of a record; what it says of its source itself stands behind it, `rankings@v1/mail`."""
    return replace(record, source=f"{name}/{record.source}" if record.source else name)


def part_of(source: str) -> str:
    """Say from which part a record of a mixed set is."""
    return source.partition("/")[0]


def _name(name: str, records: Iterable[Comparison]) -> list[Comparison]:
    return [replace_source(name, record) for record in records]


def count_passes(weight: float, draw: float) -> int:
    """Say how often a record is seen in an epoch: `weight` times on average, a whole number of times each.

    Example: 2.5 is two times, and for a draw below 0.5 three.

    Args:
        weight: Of its source, above 0.
        draw: Of this record, uniform in [0, 1).
    """
    whole = int(weight)
    return whole + (draw < weight - whole)
