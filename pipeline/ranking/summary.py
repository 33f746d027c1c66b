"""A journal -> who agrees with whom, with themselves, and how far the place of an answer swayed them; and comparisons to train on.

What people say and what a model says stand apart, and so does how far the two agree.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from statistics import fmean, median
from typing import Literal

from data.answers import AnswerSet
from pipeline.ranking import figures
from pipeline.ranking.journal import Judgement
from stages.statistics.bootstrap import Estimate

By = Literal["all", "people", "model"]


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
    among_others: Estimate | None = None  # the same of all others, without this one

    @property
    def disagrees_with_all(self) -> bool:
        """Whether this one agrees with the others less than they do among themselves, by more than chance does."""
        own, others = self.with_others, self.among_others
        if own is None or others is None or own.high is None or others.low is None:
            return False
        return own.high < others.value and own.value < others.low


@dataclass(frozen=True)
class Model:
    """What a language model did."""

    name: str
    ranked: int
    cannot_say: int
    ties: float | None  # share of pairs
    disagreed: Estimate | None  # share of pairs on which its two orders disagree: ties by that
    cost: float  # 0 where no prices were given
    with_people: Estimate | None  # Krippendorff's alpha with the people, whose mean rank counts


@dataclass(frozen=True)
class Flag:
    """How often answers were marked."""

    answers: int  # how often one was, by anybody
    alpha: Estimate | None  # between people, nominal


@dataclass(frozen=True)
class Source:
    """What was said of the prompts of one source."""

    sets: int
    alpha: Estimate | None
    median_seconds: float | None


@dataclass(frozen=True)
class Summary:
    """What a journal says of itself; agreement, bias, flags and grades are people's."""

    sets: int  # that were ranked at least once
    judgements: int
    alpha: Estimate | None  # Krippendorff's, ordinal, of ranks
    with_self: Estimate | None
    position_bias: Estimate | None  # of two answers, how often the one shown first is better
    flags: dict[str, Flag]
    annotators: tuple[Annotator, ...]
    grade: Estimate | None = None  # mean, 1 to 7
    grade_alpha: Estimate | None = None  # Krippendorff's, ordinal
    sources: dict[str, Source] = field(default_factory=dict[str, Source])
    models: tuple[Model, ...] = ()
    imported: dict[str, int] = field(default_factory=dict[str, int])  # tool -> judgements


def summarise(judgements: Sequence[Judgement], answers: Mapping[str, AnswerSet] | None = None) -> Summary:
    """Measure agreement; every interval is by resampling answer sets.

    Args:
        judgements: That stand.
        answers: The sets, for figures by source.
    """
    numbers = {item: number for number, item in enumerate(dict.fromkeys(judgement.item for judgement in judgements))}
    people = [judgement for judgement in judgements if not judgement.model]
    ranked = [judgement for judgement in people if judgement.ranks is not None]
    first = [judgement for judgement in ranked if not judgement.repeat]
    tools: dict[str, int] = defaultdict(int)
    for judgement in judgements:
        if judgement.tool:
            tools[judgement.tool] += 1
    return Summary(
        sets=len({judgement.item for judgement in judgements if judgement.ranks is not None}),
        judgements=len(judgements),
        alpha=figures.measure_agreement(figures.list_ranks(first), numbers),
        with_self=figures.average(figures.iter_with_self(ranked), numbers),
        position_bias=figures.measure_bias(ranked, numbers),
        flags=_describe_flags(people, numbers, _find_sizes(judgements, answers)),
        annotators=tuple(_describe(name, people, first, numbers) for name in sorted({judgement.annotator for judgement in people})),
        grade=figures.measure_grade(people, numbers),
        grade_alpha=figures.measure_agreement(figures.list_grades([each for each in people if not each.repeat]), numbers),
        sources=_describe_sources(first, answers or {}, numbers),
        models=tuple(_describe_model(name, judgements, first, numbers) for name in sorted({each.model for each in judgements} - {""})),
        imported=dict(tools),
    )


def _find_sizes(judgements: Sequence[Judgement], answers: Mapping[str, AnswerSet] | None) -> dict[str, int]:
    if answers is not None:
        return {item: len(each.completions) for item, each in answers.items()}
    return {judgement.item: len(judgement.ranks or judgement.order) for judgement in judgements}


def _describe_flags(people: Sequence[Judgement], numbers: Mapping[str, int], sizes: Mapping[str, int]) -> dict[str, Flag]:
    counts: dict[str, int] = defaultdict(int)
    for judgement in people:
        for flag, marked in judgement.flags.items():
            counts[flag] += len(marked)
    once = [judgement for judgement in people if not judgement.repeat]
    return {
        flag: Flag(number, figures.measure_agreement(figures.list_flags(once, flag, sizes), numbers, "nominal"))
        for flag, number in sorted(counts.items())
    }


def _describe_sources(first: Sequence[Judgement], answers: Mapping[str, AnswerSet], numbers: Mapping[str, int]) -> dict[str, Source]:
    by_source: dict[str, list[Judgement]] = defaultdict(list)
    for judgement in first:
        if judgement.item in answers and answers[judgement.item].source:
            by_source[answers[judgement.item].source].append(judgement)
    return {
        source: Source(
            sets=len({judgement.item for judgement in own}),
            alpha=figures.measure_agreement(figures.list_ranks(own), numbers),
            median_seconds=_find_median(own),
        )
        for source, own in sorted(by_source.items())
    }


def _describe(name: str, people: Sequence[Judgement], first: Sequence[Judgement], numbers: Mapping[str, int]) -> Annotator:
    own = [judgement for judgement in people if judgement.annotator == name]
    ranked = [judgement for judgement in own if judgement.ranks is not None]
    return Annotator(
        name=name,
        ranked=len(ranked),
        skipped=sum(judgement.outcome == "skipped" for judgement in own),
        cannot_say=sum(judgement.outcome == "cannot say" for judgement in own),
        median_seconds=_find_median(ranked),
        ties=_find_ties(ranked),
        with_others=figures.average(figures.iter_with_others(name, first), numbers),
        with_self=figures.average(figures.iter_with_self(ranked), numbers),
        among_others=figures.average(figures.iter_among_others(name, first), numbers),
    )


def _describe_model(name: str, judgements: Sequence[Judgement], first: Sequence[Judgement], numbers: Mapping[str, int]) -> Model:
    own = [judgement for judgement in judgements if judgement.model == name]
    ranked = [judgement for judgement in own if judgement.ranks is not None]
    return Model(
        name=name,
        ranked=len(ranked),
        cannot_say=len(own) - len(ranked),
        ties=_find_ties(ranked),
        disagreed=figures.measure_disagreement(own, numbers),
        cost=sum(judgement.cost for judgement in own),
        with_people=figures.measure_with_model(first, ranked, numbers),
    )


def _find_median(ranked: Sequence[Judgement]) -> float | None:
    seconds = [judgement.seconds for judgement in ranked if judgement.seconds > 0]
    return median(seconds) if seconds else None


def _find_ties(ranked: Sequence[Judgement]) -> float | None:
    pairs = [a == b for judgement in ranked for a, b in combinations(judgement.ranks or (), 2)]
    return fmean(pairs) if pairs else None


def make_comparisons(answers: Mapping[str, AnswerSet], judgements: Sequence[Judgement], by: By = "all") -> Iterator[dict[str, object]]:
    """Yield a comparison for each set that was ranked, in the order of the file; `judged_by` says whose ranking it is.

    Where several people ranked a set, its ranks (and grades) are by the mean of theirs; equal means are ties. Repetitions are left out,
    as they are there to measure. A set whose answers are all tied is there too: it makes no pair, and the stages count it.

    Args:
        answers: The sets.
        judgements: That stand.
        by: Whose count: people's alone, a model's alone, or people's where there are some and otherwise a model's.
    """
    by_item: dict[tuple[str, bool], list[Judgement]] = defaultdict(list)
    for judgement in judgements:
        if judgement.ranks is not None and not judgement.repeat:
            by_item[judgement.item, bool(judgement.model)].append(judgement)
    for item, each in answers.items():
        people = by_item.get((item, False), []) if by != "model" else []
        chosen = people or (by_item.get((item, True), []) if by != "people" else [])
        if not chosen:
            continue
        means = [fmean(ranks) for ranks in zip(*(judgement.ranks or () for judgement in chosen), strict=True)]
        levels = sorted(set(means))
        row = {name: value for name, value in each.to_row().items() if name in ("prompt", "completions")}
        row["ranks"] = [1 + levels.index(mean) for mean in means]
        grades = [_average_grade([said.grades[answer] for said in chosen if said.grades]) for answer in range(len(means))]
        row |= {"grades": grades} if any(grade is not None for grade in grades) else {}
        row["judged_by"] = "people" if people else f"model {', '.join(sorted({judgement.model for judgement in chosen}))}"
        yield row | ({"source": each.source} if each.source else {})


def _average_grade(grades: Sequence[int | None]) -> float | None:
    given = [grade for grade in grades if grade is not None]
    return fmean(given) if given else None
