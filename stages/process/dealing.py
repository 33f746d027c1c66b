"""Items of unequal size -> shares of about the same size, for processes that wait for one another in each step."""

import heapq
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_SWAPS = 16  # at most so many times the number of shares; about as many as there are shares suffice

Numbers = NDArray[np.int64]


def deal(sizes: Numbers, counts: Sequence[int]) -> list[Numbers]:
    """Deal items out, so many to each share, and about as much.

    The largest first, each to the share that has least and is not full (Graham 1969: longest processing time first); then the fullest
    share and the emptiest one swap the two items that bring them closest, for as long as that helps.

    Args:
        sizes: of each item.
        counts: items of each share; all of them together are all items.

    Returns:
        The places of each share's items among all, ascending; the same in every process that is given the same.
    """
    shares: list[list[int]] = [[] for _ in counts]
    open_shares = [(0, share) for share, count in enumerate(counts) if count]  # a heap: (what it has, which it is)
    for item in (-sizes).argsort(kind="stable").tolist():
        total, least = open_shares[0]
        shares[least].append(item)
        if len(shares[least]) == counts[least]:
            heapq.heappop(open_shares)
        else:
            heapq.heapreplace(open_shares, (total + int(sizes[item]), least))
    totals = np.array([sizes[share].sum() for share in shares])
    for _ in range(_SWAPS * len(counts)):
        fullest, emptiest = int(totals.argmax()), int(totals.argmin())
        if not (moved := _swap(sizes, shares[fullest], shares[emptiest], int(totals[fullest] - totals[emptiest]))):
            break
        totals[fullest] -= moved
        totals[emptiest] += moved
    return [np.array(sorted(share), dtype=np.int64) for share in shares]


def _swap(sizes: Numbers, more: list[int], less: list[int], difference: int) -> int:
    """Swap the items of two shares that leave them closest; returns by how much the larger share shrinks, 0: nothing was swapped."""
    if not more or not less:
        return 0
    gains = sizes[more][:, None] - sizes[less][None]
    first, second = divmod(int(np.abs(2 * gains - difference).argmin()), len(less))
    gain = int(gains[first, second])
    if not 0 < gain < difference:
        return 0
    more[first], less[second] = less[second], more[first]
    return gain
