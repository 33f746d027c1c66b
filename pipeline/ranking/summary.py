"""A journal -> who agrees with whom, with themselves, and how far the place of an answer swayed them; and comparisons to train on."""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean, median

import numpy as np

from data.answers import AnswerSet
from pipeline.ranking.journal import Judgement
from stages.statistics.agreement import measure_alpha, measure_position_bias, measure_tau_b
from stages.statistics.bootstrap import Estimate, estimate_mean

_DRAWS = 2000


@dataclass(frozen=True)
class Annotator:
    """What one of them did."""

    name: str
    ranked: int
    skipped: int
    cannot_say: int
    median_seconds: float | None
    ties: float | None  # share of pairs
    with_others: Estimate | None  # mean tau-b with each other annotator on the sets that both ranked
    with_self: Estimate | None  # mean tau-b of a repetition with the first time


@dataclass(frozen=True)
class Summary:
    """What a journal says of itself."""

    sets: int  # that were ranked at least once
    judgements: int
    alpha: Estimate | None  # Krippendorff's, ordinal, of ranks
    with_self: Estimate | None
    position_bias: Estimate | None  # of two answers, how often the one shown first is better
    flags: dict[str, int]
    annotators: tuple[Annotator, ...]


def summarise(judgements: Sequence[Judgement]) -> Summary:
    """Measure agreement; every interval is by resampling answer sets."""
    ranked = [judgement for judgement in judgements if judgement.ranks is not None]
    first = [judgement for judgement in ranked if not judgement.repeat]
    names = sorted({judgement.annotator for judgement in judgements})
    numbers = {item: number for number, item in enumerate(dict.fromkeys(judgement.item for judgement in ranked))}
    flags: dict[str, int] = defaultdict(int)
    for judgement in judgements:
        for flag, answers in judgement.flags.items():
            flags[flag] += len(answers)
    return Summary(
        sets=len(numbers),
        judgements=len(judgements),
        alpha=_measure_alpha(first, names, numbers),
        with_self=_average(_taus_with_self(ranked), numbers),
        position_bias=_measure_bias(ranked, numbers),
        flags=dict(flags),
        annotators=tuple(_describe(name, judgements, first, numbers) for name in names),
    )


def _measure_alpha(first: Sequence[Judgement], names: Sequence[str], numbers: Mapping[str, int]) -> Estimate | None:
    units: dict[tuple[str, int], int] = {}
    for judgement in first:
        for answer in range(len(judgement.order)):
            units.setdefault((judgement.item, answer), len(units))
    if not units:
        return None
    values_AU = np.full((len(names), len(units)), np.nan)
    for judgement in first:
        for answer, rank in enumerate(judgement.ranks or ()):
            values_AU[names.index(judgement.annotator), units[judgement.item, answer]] = rank
    clusters_U = np.array([numbers[item] for item, _ in units])
    return measure_alpha(values_AU, clusters_U, "ordinal", draws=_DRAWS)


def _measure_bias(ranked: Sequence[Judgement], numbers: Mapping[str, int]) -> Estimate | None:
    if not ranked:
        return None
    width = max(len(judgement.order) for judgement in ranked)
    ranks_NK = np.full((len(ranked), width), np.nan)
    for row, judgement in enumerate(ranked):
        assert judgement.ranks is not None
        ranks_NK[row, : len(judgement.order)] = [judgement.ranks[answer] for answer in judgement.order]
    return measure_position_bias(ranks_NK, np.array([numbers[judgement.item] for judgement in ranked]), draws=_DRAWS)


def _compare(one: Judgement, other: Judgement) -> float | None:
    assert one.ranks is not None and other.ranks is not None
    return measure_tau_b(np.array(one.ranks, float), np.array(other.ranks, float))


def _taus_with_self(ranked: Sequence[Judgement]) -> Iterator[tuple[str, float]]:
    first = {(judgement.annotator, judgement.item): judgement for judgement in ranked if not judgement.repeat}
    for judgement in ranked:
        before = first.get((judgement.annotator, judgement.item))
        if judgement.repeat and before is not None and (tau := _compare(judgement, before)) is not None:
            yield judgement.item, tau


def _taus_with_others(name: str, first: Sequence[Judgement]) -> Iterator[tuple[str, float]]:
    own = {judgement.item: judgement for judgement in first if judgement.annotator == name}
    for judgement in first:
        mine = own.get(judgement.item)
        if judgement.annotator != name and mine is not None and (tau := _compare(mine, judgement)) is not None:
            yield judgement.item, tau


def _average(taus: Iterator[tuple[str, float]], numbers: Mapping[str, int]) -> Estimate | None:
    found = list(taus)
    if not found:
        return None
    values_N, clusters_N = np.array([tau for _, tau in found]), np.array([numbers[item] for item, _ in found])
    return estimate_mean(values_N, clusters_N, draws=_DRAWS)


def _describe(name: str, judgements: Sequence[Judgement], first: Sequence[Judgement], numbers: Mapping[str, int]) -> Annotator:
    own = [judgement for judgement in judgements if judgement.annotator == name]
    ranked = [judgement for judgement in own if judgement.ranks is not None]
    pairs = [a == b for judgement in ranked for a, b in combinations(judgement.ranks or (), 2)]
    seconds = [judgement.seconds for judgement in ranked if judgement.seconds > 0]
    return Annotator(
        name=name,
        ranked=len(ranked),
        skipped=sum(judgement.outcome == "skipped" for judgement in own),
        cannot_say=sum(judgement.outcome == "cannot say" for judgement in own),
        median_seconds=median(seconds) if seconds else None,
        ties=fmean(pairs) if pairs else None,
        with_others=_average(_taus_with_others(name, first), numbers),
        with_self=_average(_taus_with_self(ranked), numbers),
    )


def name_secretly(name: str, judgements: Sequence[Judgement]) -> str:
    """Give an annotator a pseudonym, the same in all that is said of one journal.

    Its key is the id of the first judgement, which is random and never shown: names cannot be found by trying them.
    """
    return "#" + hashlib.sha256(f"{judgements[0].id}\0{name}".encode()).hexdigest()[:8]


def make_comparisons(answers: Mapping[str, AnswerSet], judgements: Sequence[Judgement]) -> Iterator[dict[str, object]]:
    """Yield a comparison for each set that was ranked, in the order of the file.

    Where several people ranked a set, its ranks are by the mean of theirs; equal means are ties. Repetitions are left out, as they are
    there to measure. A set whose answers are all tied is there too: it makes no pair, and the stages count it.
    """
    by_item: dict[str, list[tuple[int, ...]]] = defaultdict(list)
    for judgement in judgements:
        if judgement.ranks is not None and not judgement.repeat:
            by_item[judgement.item].append(judgement.ranks)
    for item, each in answers.items():
        if item not in by_item:
            continue
        means = [fmean(ranks) for ranks in zip(*by_item[item], strict=True)]
        levels = sorted(set(means))
        prompt = [{"role": message.role, "content": message.content} for message in each.prompt]
        row: dict[str, object] = {"prompt": prompt, "completions": list(each.completions)}
        row["ranks"] = [1 + levels.index(mean) for mean in means]
        yield row | ({"source": each.source} if each.source else {})
