"""Rows of figures -> warnings, each told once. Rules look at what was logged so far and say what they find, or nothing."""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from statistics import fmean

from stages.result import StageWarning

WINDOW = 10  # rows that a rule averages over: what one rollout shows is noise

Row = Mapping[str, float]


@dataclass(frozen=True)
class History:
    """What rules look at.

    Args:
        first: The first `WINDOW` rows of iterations.
        last: The newest as many.
        evaluations: All rows with figures of held-out prompts.
    """

    first: list[Row] = field(default_factory=list[Row])
    last: deque[Row] = field(default_factory=lambda: deque[Row](maxlen=WINDOW))
    evaluations: list[Row] = field(default_factory=list[Row])

    @property
    def newest(self) -> Row:
        """The row that was logged last; empty before the first."""
        return self.last[-1] if self.last else {}

    def begin(self, name: str) -> float | None:
        """Average a figure over the first rows; None until there are `WINDOW` of them."""
        return _mean(self.first, name)

    def now(self, name: str) -> float | None:
        """Average a figure over the newest rows; None until there are `WINDOW` of them."""
        return _mean(self.last, name)

    def span(self) -> str:
        """Name the newest rows."""
        return f"iterations {self.last[0]['step']:.0f} to {self.last[-1]['step']:.0f}"


# Says in one line what was found, what it means and what to try; None where it finds nothing.
Rule = Callable[[History], str | None]


class Watch:
    """Takes rows as they are logged, and keeps what was found."""

    def __init__(self, rules: Mapping[str, Rule]) -> None:
        self._rules = rules
        self._history = History()
        self._found: dict[str, StageWarning] = {}

    @property
    def found(self) -> list[StageWarning]:
        """All warnings, in the order in which they were first found."""
        return list(self._found.values())

    def take(self, row: Row) -> list[StageWarning]:
        """Take the next row; returns the warnings that were not known before."""
        history = self._history
        if any(name.startswith("eval/sampled/") for name in row):
            history.evaluations.append(row)
        if "objective/kl" in row:
            if len(history.first) < WINDOW:
                history.first.append(row)
            history.last.append(row)
        new: list[StageWarning] = []
        for name, rule in self._rules.items():
            if (message := rule(history)) is None:
                continue
            step, before = int(row["step"]), self._found.get(name)
            self._found[name] = StageWarning(
                name=name,
                message=message,
                first_step=step if before is None or before.first_step is None else before.first_step,
                last_step=step,
            )
            if before is None:
                new.append(self._found[name])
        return new


def _mean(rows: Iterable[Row], name: str) -> float | None:
    values = [row[name] for row in rows if name in row]
    return fmean(values) if len(values) == WINDOW else None
