"""What a journal of rankings says of itself -> lines and a table."""

from collections.abc import Iterator

from rich.console import Console

from pipeline.ranking.summary import Annotator, Summary
from pipeline.report.tables import print_line, print_table
from pipeline.text import count
from stages.statistics.bootstrap import Estimate

_HEAD = ("who", "ranked", "none", "time", "ties", "with others", "with self")


def print_rankings(console: Console, summary: Summary) -> None:
    """Print how far annotators agree, with 95 % intervals."""
    for line in _list_lines(summary):
        print_line(console, line)
    if summary.annotators:
        console.print()
        print_table(console, _HEAD, [_make_row(each) for each in summary.annotators])
        for each in summary.annotators:
            if each.disagrees_with_all:
                found = f"{each.name} agrees with the others less ({_write(each.with_others, '')}) than they do among themselves"
                say = f"{found} ({_write(each.among_others, '')}): talk about the guidelines before its rankings are used"
                print_line(console, say, "yellow")
    if summary.sources:
        console.print()
        rows = [
            (name, str(each.sets), _write_seconds(each.median_seconds), _shorten(_write(each.alpha, "")))
            for name, each in summary.sources.items()
        ]
        print_table(console, ("source", "sets", "time", "alpha"), rows)


def _list_lines(summary: Summary) -> Iterator[str]:
    makers = [count(len(summary.annotators), "annotator")] + [f"the model {model.name}" for model in summary.models]
    none = sum(each.skipped + each.cannot_say for each in summary.annotators) + sum(model.cannot_say for model in summary.models)
    if none:  # of sets that nobody may have ranked
        said = f"{count(summary.judgements, 'judgement')} by {' and '.join(makers)}, {none:,} of them no ranking"
        yield f"{said}; {count(summary.sets, 'answer set')} ranked"
    else:
        yield f"{count(summary.judgements, 'judgement')} of {count(summary.sets, 'answer set')} by {' and '.join(makers)}"
    yield from (f"{number} of them imported from {tool}" for tool, number in sorted(summary.imported.items()))
    yield f"agreement (Krippendorff's alpha of ranks)     {_write(summary.alpha, 'no set was ranked by two people')}"
    yield f"agreement with oneself (tau-b)                {_write(summary.with_self, 'no set was ranked twice by anybody')}"
    yield f"of two answers, the one shown first is better {_write(summary.position_bias, 'no pair was ranked')}{_warn(summary)}"
    if summary.grade is not None:
        alpha = f", alpha {_write(summary.grade_alpha, '')}" if summary.grade_alpha else ""
        yield f"grades, 1 to 7                                {_write(summary.grade, '')}{alpha}"
    for name, flag in summary.flags.items():
        alpha = f", alpha {_write(flag.alpha, '')}" if flag.alpha else ""
        yield f"flag {name}: {count(flag.answers, 'answer')}{alpha}"
    for model in summary.models:
        cost = f"; cost {model.cost:.4g}" if model.cost else ""
        yield f"model {model.name}: {model.ranked} ranked, {model.cannot_say} not; ties {model.ties or 0:.0%}{cost}"
        yield f"  its agreement with people (alpha)           {_write(model.with_people, 'no set was ranked by both')}"
        yield f"  its two orders of a pair disagree           {_write(model.disagreed, 'no pair was asked in both')}"


def _make_row(each: Annotator) -> tuple[str, ...]:
    return (
        each.name,
        str(each.ranked),
        str(each.skipped + each.cannot_say),
        _write_seconds(each.median_seconds),
        "" if each.ties is None else f"{each.ties:.0%}",
        _shorten(_write(each.with_others, "")),
        _shorten(_write(each.with_self, "")),
    )


def _write_seconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.0f} s"


def _shorten(estimate: str) -> str:
    return estimate.replace(" (n ", " n").removesuffix(")")


def _write(estimate: Estimate | None, otherwise: str) -> str:
    if estimate is None:
        return f"not known: {otherwise}" if otherwise else ""
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.2f} (n {estimate.num_clusters})"
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}] (n {estimate.num_clusters})"


def _warn(summary: Summary) -> str:
    bias = summary.position_bias
    if bias is None or bias.low is None or bias.high is None or bias.low <= 0.5 <= bias.high:
        return ""
    return "; the place sways them: show answers in random order, and say so in the guidelines"
