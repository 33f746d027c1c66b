"""What the processes of a stage decide together at the end of each step: whether to stop, and whether to save.

A stop signal may reach one process a step before another, and clocks differ: each would go its own way, into collectives that do not fit.
"""

import time
from typing import NamedTuple

import torch
from torch import distributed

from stages.process.context import StageContext, uses_gpu


class Decision(NamedTuple):
    """What all processes do after a step."""

    stop: bool  # after saving
    save: bool


class StepEnd:
    """Asks all processes at the end of a step."""

    def __init__(self, context: StageContext, save_minutes: float | None) -> None:
        """Begin to count the minutes.

        Args:
            context: of the stage.
            save_minutes: after which a checkpoint is due, by the main process's clock; None: never.
        """
        self._context = context
        self._save_s = None if save_minutes is None else 60.0 * save_minutes
        self._saved_s = time.monotonic()

    def saved(self) -> None:
        """Count the minutes from here on."""
        self._saved_s = time.monotonic()

    def decide(self) -> Decision:
        """Decide, the same in all processes; every one must call it after the same steps."""
        context = self._context
        due = context.is_main and self._save_s is not None and time.monotonic() - self._saved_s >= self._save_s
        signal = context.stop_signal
        if context.world_size > 1:
            wishes = torch.tensor([signal, int(due)], device="cuda" if uses_gpu(context) else "cpu")
            distributed.all_reduce(wishes, distributed.ReduceOp.MAX)
            signal, due = wishes.tolist()
            context.hear_of_signal(signal)
        # By what was asked: a signal that came meanwhile is known here alone.
        return Decision(stop=bool(signal), save=bool(signal or due))
