"""A pool of scored samples for each prompt -> what best of n would score, and how far it is from the sampler.

Axes: P prompts, M samples of each.
"""

import math

import numpy as np

from stages.statistics.intervals import Floats


def weigh_ranks(num_samples: int, n: int) -> Floats:
    """Compute with which probability the i-th smallest of m samples is the best of n of them, drawn without replacement.

        w_i = C(i − 1, n − 1) / C(m, n),   i = 1 .. m   (WebGPT 2021, arXiv 2112.09332)

    Example: m = 4, n = 2: 0, 1/6, 2/6, 3/6.
    """
    if not 1 <= n <= num_samples:
        raise ValueError(f"found n = {n} with {num_samples} samples of each prompt; needed 1 <= n <= samples")
    ways = math.comb(num_samples, n)
    return np.array([math.comb(rank, n - 1) / ways for rank in range(num_samples)])


def estimate_best_of_n(scores_PM: Floats, n: int, values_PM: Floats | None = None) -> Floats:
    """Estimate what the best of n samples is worth for each prompt, without bias, from m >= n samples.

        Σ_i w_i · v_(i),   samples in the order of their scores; samples of equal score share their weights

    Example: scores 1, 2, 3, 4 and n = 2: (2 + 2 · 3 + 3 · 4) / 6 = 3.333.

    Args:
        scores_PM: what chooses, such as the reward model's scores.
        n: how many samples it chooses from.
        values_PM: what the chosen one is worth, such as a judge's verdict; the scores themselves where left out.

    Returns:
        values_P; their mean over prompts is the estimate.
    """
    values_PM = scores_PM if values_PM is None else values_PM
    weights_M = weigh_ranks(scores_PM.shape[1], n)
    estimates = np.empty(len(scores_PM))
    for row, (scores_M, values_M) in enumerate(zip(scores_PM, values_PM, strict=True)):
        order_M = np.argsort(scores_M, kind="stable")
        _, group_M = np.unique(scores_M[order_M], return_inverse=True)
        shared = np.bincount(group_M, weights=weights_M) / np.bincount(group_M)
        estimates[row] = shared[group_M] @ values_M[order_M]
    return estimates


def bound_kl(n: int) -> float:
    """Compute log n − (n − 1)/n, an upper bound of the KL of best of n (Beirami et al. 2024, arXiv 2401.01879), in nats.

    It is the value itself only where no two samples can score alike.

    Example: n = 4 gives 1.386 − 0.75 = 0.636.
    """
    return math.log(n) - (n - 1) / n
