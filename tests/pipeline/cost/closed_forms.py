"""Closed forms for runs of which only a few numbers are published: too few for a recipe that could be planned.

N weights, D tokens: a forward makes 2 N D operations, a backward twice as many (Kaplan et al. 2020, arXiv 2001.08361, table 1); attention
adds 2 x 2 T H a token and layer for products of T x T, half of it causal.
"""

from dataclasses import dataclass

DAY_S = 86_400.0
PETA = 1e15


def count_forward(parameters: float, tokens: float) -> float:
    """Operations of a forward, without attention's."""
    return 2 * parameters * tokens


def count_training(parameters: float, tokens: float, *, recomputed: bool = False) -> float:
    """Operations of forward and backward; with activation checkpointing the forward comes twice."""
    return (4 if recomputed else 3) * count_forward(parameters, tokens)


def to_petaflop_days(operations: float) -> float:
    """Operations -> petaflop/s-days."""
    return operations / PETA / DAY_S


@dataclass(frozen=True)
class PPORun:
    """A PPO run of which a paper tells sizes and lengths.

    Args:
        actor: Weights of policy and of reference.
        critic: Weights of critic and of reward model.
        episodes: Responses that were sampled.
        prompt: Tokens of a prompt.
        response: Tokens of a response.
        epochs: Passes over each rollout.
        ptx_tokens: Of pre-training texts that were mixed in.
    """

    actor: float
    critic: float
    episodes: float
    prompt: float
    response: float
    epochs: float = 1.0
    ptx_tokens: float = 0.0

    @property
    def tokens(self) -> float:
        """Of all prompts and responses."""
        return self.episodes * (self.prompt + self.response)

    def count(self) -> dict[str, float]:
        """Operations by phase: one forward of four models to score, forward and backward of two in each epoch."""
        return {
            "rollout": count_forward(self.actor, self.tokens),
            "score": count_forward(2 * self.actor + 2 * self.critic, self.tokens),
            "update": self.epochs * count_training(self.actor + self.critic, self.tokens),
            "ptx": count_training(self.actor, self.ptx_tokens),
        }


def time_ppo(
    run: PPORun, *, gpus: int, flops: float, bandwidth: float, mfu: float, bandwidth_share: float, rows: float
) -> dict[str, float]:
    """Seconds by phase: products at a share of the rate; a decoding step reads weights (2 B) and keys and values once.

    Args:
        run: What was done.
        gpus: How many; each decodes its own rows.
        flops: Rate of one.
        bandwidth: Of its memory.
        mfu: Share of the rate that products reach.
        bandwidth_share: Share of the bandwidth that decoding reaches.
        rows: Responses that a GPU decodes at once.
    """
    operations = run.count()
    seconds = {name: count / (gpus * flops * mfu) for name, count in operations.items() if name != "rollout"}
    steps = run.episodes / gpus / rows * run.response
    by_memory = 2 * run.actor / (bandwidth * bandwidth_share)
    by_products = count_forward(run.actor, rows) / (flops * mfu)
    seconds["rollout"] = steps * max(by_memory, by_products) + count_forward(run.actor, run.episodes * run.prompt) / (gpus * flops * mfu)
    return seconds
