"""What an annotator put in order -> ranks of the answers."""

from collections.abc import Sequence


def rank_levels(levels: Sequence[Sequence[int]], order: Sequence[int]) -> tuple[tuple[int, ...], bool]:
    """Turn levels, best first, into ranks; answers that are in no level are worse than all that are.

    Example: three answers shown in the order 2, 0, 1, levels [[1], [0]]: the second shown (answer 0) is best, then the first (answer 2),
    then the third (answer 1): ranks (1, 3, 2), and that was partial.

    Args:
        levels: Places as shown, from 0; those in one level are ties.
        order: Answer at each place.

    Returns:
        (ranks by answer, whether the rest was left to be worse).

    Raises:
        ValueError: An answer is not there, or stands twice; or no answer is named.
    """
    named = [place for level in levels for place in level]
    if not named or len(set(named)) < len(named) or not set(named) <= set(range(len(order))):
        raise ValueError(f"found the places {named} of {len(order)} answers; needed each at most once, and at least one")
    ranks = [0] * len(order)
    rank = 1
    for level in levels:
        for place in level:
            ranks[order[place]] = rank
        rank += len(level)
    rest = [answer for answer in order if not ranks[answer]]
    for answer in rest:
        ranks[answer] = rank
    return tuple(ranks), len(rest) > 1


def list_levels(ranks: Sequence[int], order: Sequence[int], *, partial: bool) -> list[list[int]]:
    """Turn ranks into levels of places as shown, best first: what `rank_levels` was given. Answers that were not named are in none."""
    levels = [[place for place, answer in enumerate(order) if ranks[answer] == rank] for rank in sorted(set(ranks))]
    return levels[:-1] if partial else levels


def parse_levels(text: str, count: int) -> list[list[int]]:
    """Read a ranking: numbers of answers, best first; `=` ties with the one before. Blanks, commas and `>` may stand between.

    Example: "2=1 3" -> [[1, 0], [2]].

    Raises:
        ValueError: It is none.
    """
    levels: list[list[int]] = []
    tie = False
    for char in text:
        if char in " ,>\t":
            continue
        if char == "=":
            if tie or not levels:
                raise ValueError(f"found {text[:40]!r}; needed a number on both sides of each =; write it anew")
            tie = True
            continue
        place = read_place(char, count)
        if any(place in level for level in levels):
            raise ValueError(f"found answer {char} twice in {text[:40]!r}; needed each at most once; write it anew")
        if tie:
            levels[-1].append(place)
        else:
            levels.append([place])
        tie = False
    if tie:
        raise ValueError(f"found {text[:40]!r}; needed a number on both sides of each =; write it anew")
    return levels


def write_levels(levels: Sequence[Sequence[int]]) -> str:
    """Write a ranking as `parse_levels` reads it: [[1, 0], [2]] -> "2=1>3"."""
    return ">".join("=".join(str(place + 1) for place in level) for level in levels)


def read_place(text: str, count: int) -> int:
    """Read the number of an answer; returns its place, from 0.

    Raises:
        ValueError: There is no such answer.
    """
    if text not in "123456789"[:count] or len(text) != 1:
        raise ValueError(f"found {text[:40]!r}; needed a number of 1 to {count}, or a letter; ? lists them")
    return int(text) - 1
