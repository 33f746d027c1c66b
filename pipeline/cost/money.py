"""What is paid for beside GPUs: people who rank answers, and disks that keep what was made."""

from dataclasses import dataclass

GB = 1e9


@dataclass(frozen=True)
class Labels:
    """Rankings of a round.

    Args:
        prompts: With answers to rank.
        rankings: That are made of them: whole ones, as people are paid.
        dollars: What they cost.
    """

    prompts: float
    rankings: int
    dollars: float


def price_labels(prompts: float, overlap: float, again: float, price: float) -> Labels:
    """Price the rankings of a round.

    Args:
        prompts: With answers to rank.
        overlap: Share of them that a second person ranks too.
        again: Share of all judgements that repeat an earlier one.
        price: Dollars for a ranking.
    """
    rankings = round(prompts * (1 + overlap) / (1 - again))
    return Labels(prompts, rankings, rankings * price)


def price_storage(size: float, price_per_gb_month: float) -> float:
    """Price a month of what stays on the disk, in dollars; `size` is in bytes."""
    return size / GB * price_per_gb_month
