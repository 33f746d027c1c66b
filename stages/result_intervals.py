"""Held-out figures -> their 95 % intervals, as a result holds them.

What belongs to one prompt is drawn together, since it is not independent.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from stages.result import Interval
from stages.statistics.bootstrap import Estimate, estimate_mean, estimate_share

_DRAWS = 2000
_NO_FIGURES = ("way", "prompt", "response", "rank")


def find_interval(
    values: Sequence[float], prompts: Sequence[Hashable], *, weights: Sequence[int] | None = None, shares: bool = False
) -> Interval | None:
    """Find the interval of a mean by resampling prompts.

    Args:
        values: One for each record.
        prompts: Which prompt each belongs to.
        weights: How often each value counts in the mean, such as tokens of a record; 1 each by default.
        shares: Whether no value can lie outside of [0, 1], such as wins: then equal ones show a spread too.

    Returns:
        None where nothing shows a spread: one prompt alone, equal values that are no shares, or values that are not finite.
    """
    places = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
    if len(places) < 2 or not all(map(math.isfinite, values)):
        return None
    counts_N = np.array(weights if weights is not None else [1] * len(values))
    values_N = np.repeat(np.array(values, dtype=np.float64), counts_N)
    clusters_N = np.repeat(np.array([places[prompt] for prompt in prompts], dtype=np.int64), counts_N)
    estimate = (estimate_share if shares else estimate_mean)(values_N, clusters_N, draws=_DRAWS)
    interval = to_interval(estimate)
    return interval if interval and interval.high - interval.low > 1e-12 * max(1.0, abs(estimate.value)) else None


def to_interval(estimate: Estimate) -> Interval | None:
    """Take the interval of an estimate; None: it has none."""
    if estimate.low is None or estimate.high is None:
        return None
    return Interval(low=estimate.low, high=estimate.high, n=estimate.num_clusters)


def find_answer_intervals(rows: Sequence[Mapping[str, Any]]) -> dict[str, Interval]:
    """Find the intervals of what `report_answers` averages, from the rows that it lists: `eval/<way>/<figure>` -> interval."""
    found: dict[str, Interval] = {}
    for way in dict.fromkeys(str(row["way"]) for row in rows):
        answered = [row for row in rows if row["way"] == way]
        for name in answered[0].keys() - set(_NO_FIGURES):
            values, prompts = [float(row[name]) for row in answered], [row["prompt"] for row in answered]
            interval = find_interval(values, prompts, shares=_are_shares(name, rows))
            if interval is not None:
                found[f"eval/{way}/{name}"] = interval
    return found


def _are_shares(name: str, rows: Sequence[Mapping[str, Any]]) -> bool:
    """Say whether a figure is a share: a judge's only where its answers show it, since 0 of them all may be 0 of 100."""
    return name == "finished" or {0.0, 1.0} <= {float(row[name]) for row in rows if name in row} <= {0.0, 0.5, 1.0}
