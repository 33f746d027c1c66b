"""How answers of different lengths share the rows of a decoder: steps, and rows that are fed in them, as `stages.responses.rows` does it.

lengths -> prompts come in, one token a step in each row, finished rows leave -> (steps, rows fed in all steps)
"""

import math
from collections.abc import Iterable, Sequence

# Of `stages.responses.rows`, which cannot be imported here, as it knows tensors; a test compares the counts.
ADMIT_SHARE, COMPACT_SHARE = 0.25, 0.95
_SPREAD = (math.sqrt(5) - 1) / 2  # multiples of it fill 0 to 1 evenly, however many there are


def draw_lengths(quantiles: Sequence[float], count: int) -> list[int]:
    """Draw lengths from quantiles, evenly and the same each time.

    Args:
        quantiles: Lengths at equal shares from the least to the most; at least one.
        count: How many are drawn.
    """
    places = [((place * _SPREAD) % 1) * (len(quantiles) - 1) for place in range(1, count + 1)]
    lengths: list[int] = []
    for place in places:
        low = math.floor(place)
        high = min(low + 1, len(quantiles) - 1)
        lengths.append(max(round(quantiles[low] + (place - low) * (quantiles[high] - quantiles[low])), 1))
    return lengths


def count_steps(lengths: Iterable[int], rows: int) -> tuple[int, int]:
    """Count the decoding steps after the prefill, which gives each answer its first token, and the rows fed in all of them.

    Args:
        lengths: Tokens of each answer, in the order in which the prompts come in.
        rows: Answers that are decoded at once.
    """
    waiting, alive, finished, steps, fed = list(lengths), list[int](), 0, 0, 0
    while waiting or alive:
        free = rows - len(alive)
        if waiting and free >= ADMIT_SHARE * rows:
            alive += [length - 1 for length in waiting[:free]]
            del waiting[:free]
            finished = alive.count(0)
            alive = [left for left in alive if left]
        elif len(alive) <= COMPACT_SHARE * (len(alive) + finished):
            finished = 0
        if alive:
            steps, fed = steps + 1, fed + len(alive) + finished
            before = len(alive)
            alive = [left - 1 for left in alive if left > 1]
            finished += before - len(alive)
    return steps, fed
