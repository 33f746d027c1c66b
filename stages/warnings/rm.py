"""What a reward model's held-out accuracy is known to mean: pure functions of figures with their interval."""

from stages.result import Interval

_TOO_GOOD = 0.95


def find_chance(accuracy: float, interval: Interval | None) -> str | None:
    """Find an accuracy whose 95 % interval, over comparisons, does not exclude a coin's 0.5."""
    if interval is None or interval.low > 0.5:
        return None
    # Below a coin, ranks may stand the wrong way round.
    way = "more comparisons" if interval.high >= 0.5 else "see that rank 1 is the best answer"
    found = f"held-out accuracy {_write(accuracy, interval)} is no better than a coin's 0.5"
    return f"{found}: PPO would learn noise; {way}, rm.learning_rate and rm.epochs are what to try"


def find_too_good(accuracy: float, interval: Interval | None) -> str | None:
    """Find an accuracy that lies above 0.95 with its whole interval.

    People agree with each other on 63 to 77 % of such pairs (Ouyang et al. 2022: 73 and 77 %; Stiennon et al. 2020: 73 and 77 %; Bai et al.
    2022: 63 %), and reward models learnt from them on some 70 %. Far above that, something gives the answer away (its length, its source,
    its format), or its pair stood in training. A rule may have ranked them, too; then it is as it should be.
    """
    if interval is None or not interval.low > _TOO_GOOD:
        return None
    found = f"held-out accuracy {_write(accuracy, interval)} is more than people agree among themselves (63 to 77 %)"
    meaning = "something may give the better answer away, or held-out pairs stood in training"
    return f"{found}: {meaning}; look at length and source in `rlhf check-data`, and give data.comparisons.eval of other prompts"


def _write(accuracy: float, interval: Interval) -> str:
    return f"{accuracy:.3f} [{interval.low:.3f}, {interval.high:.3f}], {interval.n:,} comparisons,"
