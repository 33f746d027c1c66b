"""Hand-made histories of PPO: rows as metrics.jsonl has them, healthy but for what a test changes."""

HEALTHY = {
    "objective/kl": 3.0,
    "response_length": 30.0,
    "policy/entropy_avg": 0.25,
    "val/explained_variance": 0.8,
    "val/ratio_start_deviation": 1e-6,
    "rollout/logprob_gap": 1e-7,
    "kl_coef": 0.05,
}


def iterations(count=30, **changes):
    """Rows of iterations 1 to count; a change is a number, or a function of the iteration."""
    changed = {_KEYS[name]: value for name, value in changes.items()}
    return [
        {"step": float(step)} | HEALTHY | {key: value(step) if callable(value) else value for key, value in changed.items()}
        for step in range(1, count + 1)
    ]


def evaluation(step, score, **figures):
    """A row of held-out figures, each given as (average, standard error) or as the average alone."""
    row = {"step": float(step), "eval/sampled/score": score}
    for name, value in figures.items():
        average, error = value if isinstance(value, tuple) else (value, None)
        row |= {f"eval/sampled/{name}": average} | ({} if error is None else {f"eval/sampled/{name}_se": error})
    return row


_KEYS = {
    "kl": "objective/kl",
    "length": "response_length",
    "entropy": "policy/entropy_avg",
    "explained": "val/explained_variance",
    "deviation": "val/ratio_start_deviation",
    "gap": "rollout/logprob_gap",
}
