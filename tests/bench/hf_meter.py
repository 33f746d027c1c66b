"""A callback that makes a Hugging Face trainer answer "go": it waits between two units of work, and times what lies between."""

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback

from tests.bench.protocol import Bench, Figures, Instant


class Meter(TrainerCallback):
    """One "go" is one optimizer step with all that belongs to it, or one epoch.

    Args:
        bench: the worker's end of the line.
        unit: `step` or `epoch`.
        figures: told with every answer, such as the tokens of a unit.
    """

    def __init__(self, bench: Bench, unit: str, figures: Callable[[], Figures]) -> None:
        self.bench = bench
        self.unit = unit
        self.figures = figures
        self.start = Instant.now()
        self.steps = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bench.say_ready()
        self._wait()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.steps += 1
        if self.unit == "step":
            self._answer()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.unit == "epoch":
            self._answer()

    def _answer(self) -> None:
        elapsed = self.start.until(Instant.now())
        self.bench.reply(phases={"total": elapsed}, optimizer_steps=self.steps, **self.figures())
        self._wait()

    def _wait(self) -> None:
        self.bench.wait_for_go()
        self.steps = 0
        self.start = Instant.now()
