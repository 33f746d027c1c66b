"""How much work a recipe is: tokens, steps and answers of each phase, as plain numbers."""

from dataclasses import dataclass, field


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
    """

    records: int | None
    prompt: float
    response: float
    answers: float = 1.0
    held_out: float = 0.0
    known: bool = False


@dataclass(frozen=True)
class Amount:
    """One phase of a stage: what goes through it, over the whole stage and all processes.

    Args:
        phases: Phases of the trace that make it up, and how many tokens go through each.
        steps: How often something comes that does not depend on tokens: optimizer steps, decoding steps of a batch.
        rows: Responses that are decoded at once, in each process; 0: nothing is decoded.
        width: Tokens before the one that is decoded, on average.
    """

    phases: dict[str, float] = field(default_factory=dict[str, float])
    steps: dict[str, float] = field(default_factory=dict[str, float])
    rows: float = 0.0
    width: float = 0.0


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
    return Amount(phases, {"optimizer": epochs * records / batch_records})


def count_answers(answers: float, prompt: float, response: float, rows: float, processes: int, prefix: str) -> Amount:
    """Say how much it is to answer prompts by the policy's own forward.

    Rows that finish leave and waiting prompts come in, so that about so many are decoded at once until few are left.
    """
    share = answers / processes
    rows = min(rows, share)
    batches = share / rows if rows else 0.0
    return Amount({f"{prefix}prefill": answers * prompt}, {f"{prefix}decode": batches * response}, rows, prompt + response / 2)


def count_update(tokens: float, epochs: float, minibatches: float) -> Amount:
    """Say how much PPO learns from a rollout."""
    return Amount({"update": tokens * epochs}, {"optimizer": minibatches * epochs})
