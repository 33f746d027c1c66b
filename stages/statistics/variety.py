"""Responses as lists of tokens or words -> how much they repeat, within one and among all."""

from collections.abc import Hashable, Sequence

REPEATED_N = 4


def list_ngrams(words: Sequence[Hashable], n: int) -> list[tuple[Hashable, ...]]:
    """List all runs of n words, in order; none where there are fewer than n words."""
    return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]


def measure_distinct(responses: Sequence[Sequence[Hashable]], n: int) -> float | None:
    """Compute distinct-n: different n-grams / all n-grams, over all responses together (Li et al. 2016, arXiv 1510.03055).

    It falls as there is more text, so compare equal numbers of responses of about equal length.

    Example: "a b a" and "a b": distinct-1 = 2/5, distinct-2 = 2/3.

    Returns:
        None where no response has n words.
    """
    ngrams = [ngram for words in responses for ngram in list_ngrams(words, n)]
    return len(set(ngrams)) / len(ngrams) if ngrams else None


def measure_repetition(responses: Sequence[Sequence[Hashable]]) -> float | None:
    """Compute the share of repeated n-grams within a response, mean over responses (Welleck et al. 2020, arXiv 1908.04319).

        1 − different n-grams / n-grams

    Example: "a b a b a b" has the 4-grams abab, baba, abab: a share of 1/3.

    Returns:
        None where no response has n words; shorter ones are not counted.
    """
    listed = [ngrams for words in responses if (ngrams := list_ngrams(words, REPEATED_N))]
    return sum(1 - len(set(ngrams)) / len(ngrams) for ngrams in listed) / len(listed) if listed else None
