"""metrics.jsonl of a stage -> the points of its figures. 100,000 rows take a second; rows that are none are counted and told."""

from collections.abc import Collection
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from pipeline.report.rows import read_rows, tell_left_out
from pipeline.report.scales import LARGEST, Point
from pipeline.text import count
from stages.lines import read_number
from stages.spec import METRICS_FILE


@dataclass(frozen=True)
class Curves:
    """Metric -> its points by rising step, and what is to be told of the file."""

    points: dict[str, list[Point]] = field(default_factory=dict[str, list[Point]])
    problems: tuple[str, ...] = ()
    rows: int = 0


def read_curves(directory: Path, wanted: Collection[str]) -> Curves:
    """Read some figures of an artifact; values that are not finite are kept and told."""
    points: dict[str, list[Point]] = {}
    bad: dict[int, str] = {}
    steps: list[float] = []
    listed = [(name, points.setdefault(name, []).append) for name in wanted]
    try:
        rows = read_rows(directory / METRICS_FILE, bad)
    except ValueError as error:
        return Curves(problems=(f"{METRICS_FILE}: {error}; there are no curves of this stage",))
    for number, row in rows:
        if (step := read_number(row.get("step"))) is None:
            bad[number] = "found no step; needed a number"
            continue
        steps.append(step)
        for name, add in listed:
            if (value := row.get(name)) is not None and (value := read_number(value)) is not None:
                add((step, value))
    points = {name: found for name, found in points.items() if found}
    problems: list[str] = []
    for name in sorted(points):
        if not_finite := sum(not abs(value) < LARGEST for _, value in points[name]):  # also where it is not a number
            problems.append(f"{METRICS_FILE}: {name} is not finite in {not_finite:,} of {count(len(steps), 'row')}")
    problems += tell_left_out(METRICS_FILE, bad, "no rows of figures")
    if any(after < before for before, after in pairwise(steps)):  # after a restart; of a step that was logged twice both stay
        points = {name: sorted(found, key=lambda point: point[0]) for name, found in points.items()}
    return Curves(points, tuple(problems), len(steps))
