"""Judgements -> how far those who made them agree: in ranks, grades, flags; people with one another, with a model, with themselves."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean

import numpy as np

from pipeline.ranking.journal import Judgement
from stages.statistics.agreement import Level, measure_alpha, measure_position_bias, measure_tau_b
from stages.statistics.bootstrap import Estimate, estimate_mean, estimate_share

DRAWS = 2000
Unit = tuple[str, int]  # set, answer
Values = Mapping[str, Mapping[Unit, float]]  # who -> what they say of each


def measure_agreement(values: Values, numbers: Mapping[str, int], level: Level = "ordinal") -> Estimate | None:
    """Measure Krippendorff's alpha of what several say of the same units; None where no unit has two values, or all are the same."""
    units = {unit: place for place, unit in enumerate(dict.fromkeys(unit for own in values.values() for unit in own))}
    if len(values) < 2 or not units:
        return None
    values_AU = np.full((len(values), len(units)), np.nan)
    for row, own in enumerate(values.values()):
        for unit, value in own.items():
            values_AU[row, units[unit]] = value
    return measure_alpha(values_AU, np.array([numbers[item] for item, _ in units]), level, draws=DRAWS)


def list_ranks(judgements: Sequence[Judgement]) -> Values:
    """List the ranks that each gives."""
    values: dict[str, dict[Unit, float]] = defaultdict(dict)
    for judgement in judgements:
        values[judgement.annotator] |= {(judgement.item, answer): float(rank) for answer, rank in enumerate(judgement.ranks or ())}
    return values


def list_grades(judgements: Sequence[Judgement]) -> Values:
    """List the grades that each gives, of a set's best answer or of each one."""
    values: dict[str, dict[Unit, float]] = defaultdict(dict)
    for judgement in judgements:
        if judgement.grade is not None:
            values[judgement.annotator][judgement.item, -1] = float(judgement.grade)
        graded = {n: float(grade) for n, grade in enumerate(judgement.grades or ()) if grade is not None}
        values[judgement.annotator] |= {(judgement.item, answer): grade for answer, grade in graded.items()}
    return values


def list_flags(judgements: Sequence[Judgement], flag: str, sizes: Mapping[str, int]) -> Values:
    """List of each answer that somebody judged whether it has a flag: 1 or 0."""
    values: dict[str, dict[Unit, float]] = defaultdict(dict)
    for judgement in judgements:
        if judgement.outcome != "skipped":
            marked = judgement.flags.get(flag, ())
            values[judgement.annotator] |= {(judgement.item, n): float(n in marked) for n in range(sizes.get(judgement.item, 0))}
    return values


def average_ranks(each: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Rank answers by the mean of several people's ranks; equal means are ties, 1 + the number of better ones.

    Example: (1, 2, 3) and (2, 1, 3) -> (1, 1, 3).
    """
    means = [fmean(ranks) for ranks in zip(*each, strict=True)]
    return tuple(1 + sum(other < mean for other in means) for mean in means)


def measure_with_model(people: Sequence[Judgement], models: Sequence[Judgement], numbers: Mapping[str, int]) -> Estimate | None:
    """Measure alpha between people, whose ranks of a set count as their mean, and a model."""
    by_item: dict[str, list[tuple[int, ...]]] = defaultdict(list)
    for judgement in people:
        by_item[judgement.item].append(judgement.ranks or ())
    together = {(item, answer): float(rank) for item, each in by_item.items() for answer, rank in enumerate(average_ranks(each))}
    by_model = {unit: rank for own in list_ranks(models).values() for unit, rank in own.items()}
    return measure_agreement({"people": together, "model": by_model}, numbers)


def measure_bias(ranked: Sequence[Judgement], numbers: Mapping[str, int]) -> Estimate | None:
    """Measure how often the answer shown first is better, of the rankings whose order is known."""
    known = [judgement for judgement in ranked if judgement.order]
    if not known:
        return None
    ranks_NK = np.full((len(known), max(len(judgement.order) for judgement in known)), np.nan)
    for row, judgement in enumerate(known):
        assert judgement.ranks is not None
        ranks_NK[row, : len(judgement.order)] = [judgement.ranks[answer] for answer in judgement.order]
    return measure_position_bias(ranks_NK, np.array([numbers[judgement.item] for judgement in known]), draws=DRAWS)


def measure_disagreement(models: Sequence[Judgement], numbers: Mapping[str, int]) -> Estimate | None:
    """Measure how often a model's two orders of a pair disagreed, of the pairs that it judged in both."""
    values, clusters = list[float](), list[int]()
    for judgement in models:
        counts = [judgement.pairs.get(how, 0) for how in ("disagreed", "agreed", "tie")]
        values += [1.0] * counts[0] + [0.0] * (counts[1] + counts[2])
        clusters += [numbers[judgement.item]] * sum(counts)
    return estimate_share(np.array(values), np.array(clusters), draws=DRAWS) if values else None


def measure_grade(judgements: Sequence[Judgement], numbers: Mapping[str, int]) -> Estimate | None:
    """Estimate the mean grade."""
    graded = [(each.item, grade) for each in judgements for grade in (each.grade, *(each.grades or ())) if grade is not None]
    return average(((item, float(grade)) for item, grade in graded), numbers)


def average(taus: Iterator[tuple[str, float]], numbers: Mapping[str, int]) -> Estimate | None:
    """Average figures of sets, (set, figure) each; None where there is none."""
    found = list(taus)
    if not found:
        return None
    values_N, clusters_N = np.array([tau for _, tau in found]), np.array([numbers[item] for item, _ in found])
    return estimate_mean(values_N, clusters_N, draws=DRAWS)


def iter_with_self(ranked: Sequence[Judgement]) -> Iterator[tuple[str, float]]:
    """Yield (set, tau-b) of each repetition with the first time."""
    first = {(judgement.annotator, judgement.item): judgement for judgement in ranked if not judgement.repeat}
    for judgement in ranked:
        before = first.get((judgement.annotator, judgement.item))
        if judgement.repeat and before is not None and (tau := _compare(judgement, before)) is not None:
            yield judgement.item, tau


def iter_with_others(name: str, first: Sequence[Judgement]) -> Iterator[tuple[str, float]]:
    """Yield (set, tau-b) of one annotator with each other on the sets that both ranked."""
    own = {judgement.item: judgement for judgement in first if judgement.annotator == name}
    for judgement in first:
        mine = own.get(judgement.item)
        if judgement.annotator != name and mine is not None and (tau := _compare(mine, judgement)) is not None:
            yield judgement.item, tau


def iter_among_others(name: str, first: Sequence[Judgement]) -> Iterator[tuple[str, float]]:
    """Yield (set, tau-b) of all pairs of annotators that one is no part of."""
    others = sorted({judgement.annotator for judgement in first} - {name})
    for place, other in enumerate(others):
        yield from iter_with_others(other, [each for each in first if each.annotator in others[place:]])


def _compare(one: Judgement, other: Judgement) -> float | None:
    assert one.ranks is not None and other.ranks is not None
    return measure_tau_b(np.array(one.ranks, float), np.array(other.ranks, float))
