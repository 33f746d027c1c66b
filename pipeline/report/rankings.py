"""What a journal of rankings says of itself -> lines and a table."""

from rich.console import Console
from rich.text import Text

from pipeline.ranking.summary import Summary
from pipeline.report.tables import print_table
from pipeline.text import clean, count
from stages.statistics.bootstrap import Estimate

_HEAD = ("who", "ranked", "none", "time", "ties", "with others", "with self")


def print_rankings(console: Console, summary: Summary) -> None:
    """Print how far annotators agree, with 95 % intervals."""
    lines = [
        f"{count(summary.judgements, 'judgement')} of {count(summary.sets, 'answer set')} by {count(len(summary.annotators), 'annotator')}",
        f"agreement (Krippendorff's alpha of ranks)     {_write(summary.alpha, 'no set was ranked by two people')}",
        f"agreement with oneself (tau-b)                {_write(summary.with_self, 'no set was ranked twice by anybody')}",
        f"of two answers, the one shown first is better {_write(summary.position_bias, 'no pair was ranked')}{_warn(summary)}",
    ]
    if summary.flags:
        lines.append("flags: " + ", ".join(f"{flag} {count}" for flag, count in sorted(summary.flags.items())))
    for line in lines:
        console.print(Text(clean(line)), soft_wrap=True)
    if not summary.annotators:
        return
    console.print()
    rows = [
        (
            each.name,
            str(each.ranked),
            str(each.skipped + each.cannot_say),
            "" if each.median_seconds is None else f"{each.median_seconds:.0f} s",
            "" if each.ties is None else f"{each.ties:.0%}",
            _write(each.with_others, "").replace(" (n ", " n").removesuffix(")"),
            _write(each.with_self, "").replace(" (n ", " n").removesuffix(")"),
        )
        for each in summary.annotators
    ]
    print_table(console, _HEAD, rows)


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
