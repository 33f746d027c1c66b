"""When memory runs out: micro-batches of half the tokens for the rest of the run, once.

Neither losses nor gradients depend on the size of micro-batches, so the run goes on as if nothing had happened.
"""

from collections.abc import Callable
from typing import TypeVar

from stages.process.errors import is_out_of_memory
from stages.responses.rollout import Rollout

Result = TypeVar("Result")


class TokenBudget:
    """Tokens that a micro-batch may have; part of the checkpoint."""

    def __init__(self, max_tokens: int, *, may_halve: bool = True, note: Callable[[str], None] = print) -> None:
        """Begin with the configured size.

        Args:
            max_tokens: of a micro-batch.
            may_halve: whether it may shrink; with several ranks not, because one rank alone would begin anew.
            note: says so to the user.
        """
        self.max_tokens = max_tokens
        self.may_halve = may_halve
        self._note = note

    def attempt(self, batch: Rollout, work: Callable[[int], Result], undo: Callable[[], None] | None = None) -> Result:
        """Do the work on a batch; if memory runs out, undo what was done, and do all of it again in micro-batches of half the tokens.

        Args:
            batch: what the work splits into micro-batches.
            work: takes the tokens of a micro-batch.
            undo: takes back what the work left when it failed.

        Raises:
            Exception: the work's own; out of memory only where the size may not shrink (any more).
        """
        try:
            return work(self.max_tokens)
        except Exception as error:
            if not self.may_halve or not is_out_of_memory(error):
                raise
        # Outside of the except clause: the error is gone, and with it the tensors that its frames held.
        if undo is not None:
            undo()
        self._halve(int(batch.lengths_2B.sum()))
        return work(self.max_tokens)

    def _halve(self, num_tokens: int) -> None:
        before = self.max_tokens
        self.max_tokens = max(1, min(before, num_tokens) // 2)  # half of a limit that the batch did not reach would change nothing
        self.may_halve = False
        self._note(
            f"out of memory: from here on micro-batches have at most {self.max_tokens} tokens instead of {before}; "
            f"set ppo.max_tokens_per_microbatch: {self.max_tokens} to begin with that"
        )
