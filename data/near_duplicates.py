"""Which of two answers say the same in all but case, punctuation and a word or two: people learn nothing by ranking them."""

import itertools
import re
from collections import Counter

_WORD = re.compile(r"\w+")


def measure_overlap(one: str, other: str) -> float:
    """Measure which share of their pairs of neighbouring words two texts have in common: |A ∩ B| / |A ∪ B|, each as often as it occurs.

    Begin and end count as words, so that a text of one word has pairs too. One other word among twenty gives 0.83.

    Returns:
        0 to 1; 1 for texts that differ in case and punctuation alone.
    """
    first, second = _count_pairs(one), _count_pairs(other)
    return (first & second).total() / (first | second).total()


def _count_pairs(text: str) -> Counter[tuple[str, str]]:
    words = ["", *_WORD.findall(text.casefold()), ""]
    return Counter(itertools.pairwise(words))
