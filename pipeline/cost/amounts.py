"""How much work a recipe is: tokens, steps and answers of each phase, as plain numbers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from pipeline.cost.schedule import count_steps, draw_lengths


@dataclass(frozen=True)
class Lengths:
    """Of a record set.

    Args:
        records: How many there are to train on; None: not known.
        prompt: Tokens of a prompt, on average.
        response: Tokens of a response, on average.
        answers: Of a comparison.
        held_out: Records that are held out.
        known: Whether they were read; else they are the limits.
        quantiles: Of the responses' tokens, from the shortest to the longest; empty: not known.
    """

    records: int | None
    prompt: float
    response: float
    answers: float = 1.0
    held_out: float = 0.0
    known: bool = False
    quantiles: tuple[float, ...] = ()


@dataclass(frozen=True)
class Amount:
    """One phase of a stage: what goes through it, over the whole stage and all processes.

    Args:
        phases: Phases of the trace that make it up, and how many tokens go through each.
        steps: How often something comes that does not depend on tokens: optimizer steps, decoding steps of a batch.
        rows: Responses that a decoding step feeds, in each process and on average; 0: nothing is decoded.
        width: Tokens before the one that is decoded, on average.
        least: How often each process goes through the phases, however few tokens it has: each minibatch, each rollout.
    """

    phases: dict[str, float] = field(default_factory=dict[str, float])
    steps: dict[str, float] = field(default_factory=dict[str, float])
    rows: float = 0.0
    width: float = 0.0
    least: float = 0.0


def count_training(tokens: float, batch_records: float, records: float, epochs: float, scored_tokens: float = 0.0) -> Amount:
    """Say how much a training stage is.

    Args:
        tokens: Of a record.
        batch_records: Of an optimizer step.
        records: To train on.
        epochs: Passes over them.
        scored_tokens: That are only looked at, such as held-out records.
    """
    total = tokens * records * epochs
    phases = {"forward": total + scored_tokens, "backward": total}
    steps = epochs * records / batch_records
    return Amount(phases, {"optimizer": steps}, least=steps)


def count_answers(
    answers: float, prompt: float, quantiles: Sequence[float], rows: float, processes: int, prefix: str, at_once: float | None = None
) -> Amount:
    """Say how much it is to answer prompts by the policy's own forward.

    Rows that finish leave and waiting prompts come in; the last ones of a call are decoded by few rows, to the longest one's end.

    Args:
        answers: Of all processes.
        prompt: Tokens of a prompt.
        quantiles: Of the answers' tokens, from the shortest to the longest.
        rows: Answers that a process decodes at once, at most.
        processes: That share the answers.
        prefix: Of the phases.
        at_once: Answers of all processes that are given to the decoder in one call; None: all.
    """
    together = min(at_once or answers, answers)
    call = math.ceil(together / processes)
    if not call:
        return Amount({f"{prefix}prefill": 0.0}, {f"{prefix}decode": 0.0}, rows, prompt)
    lengths = draw_lengths(quantiles, call)
    steps, fed = count_steps(lengths, max(round(rows), 1))
    calls = answers / together  # of fewer answers than processes each call goes to the end of one
    tokens = {f"{prefix}prefill": answers * prompt}
    return Amount(tokens, {f"{prefix}decode": calls * steps}, fed / steps if steps else 0.0, prompt + sum(lengths) / call / 2, calls)


def count_update(tokens: float, epochs: float, minibatches: float) -> Amount:
    """Say how much PPO learns from a rollout."""
    return Amount({"update": tokens * epochs}, {"optimizer": minibatches * epochs}, least=minibatches * epochs)
