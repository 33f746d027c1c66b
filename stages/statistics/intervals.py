"""Intervals in closed form, and how small a difference a number of prompts can show.

Axes: C clusters (prompts). All intervals hold 95 %.
"""

import functools
import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

CONFIDENCE = 0.95
POWER = 0.8
Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)  # 1.96


def wilson_interval(successes: float, trials: int) -> tuple[float, float]:
    """Compute the interval of a proportion (Wilson 1927, JASA 22, p. 209).

        (p + z²/2n ± z · √(p(1 − p)/n + z²/4n²)) / (1 + z²/n),   p = successes / n

    Args:
        successes: in [0, trials]; a tie counts half.
        trials: n, at least 1.

    Example: 8 of 10 give (0.490, 0.943); 10 of 10 give (0.722, 1), where mean ± 1.96 standard errors would give (1, 1).
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"found {successes} successes in {trials} trials; needed at least one trial and no more successes than trials")
    share = successes / trials
    middle = share + Z**2 / (2 * trials)
    half = Z * math.sqrt(share * (1 - share) / trials + Z**2 / (4 * trials**2))
    scale = 1 + Z**2 / trials
    # Without rounding, the bounds at none and at all are the share itself.
    low = 0.0 if successes == 0 else (middle - half) / scale
    return max(0.0, low), 1.0 if successes == trials else min(1.0, (middle + half) / scale)


def t_probability(t: float, degrees: int) -> float:
    """Compute P(|T| < t) of Student's distribution (Abramowitz and Stegun 1964, 26.7.3 and 26.7.4), a finite sum.

        θ = arctan(t / √ν)
        ν odd:  2/π · (θ + sin θ · (cos θ + 2/3 cos³ θ + ... + 2·4···(ν−3) / (3·5···(ν−2)) cos^(ν−2) θ)),   2θ/π where ν = 1
        ν even: sin θ · (1 + 1/2 cos² θ + ... + 1·3···(ν−3) / (2·4···(ν−2)) cos^(ν−2) θ)

    Args:
        t: not negative.
        degrees: ν, at least 1.
    """
    theta = math.atan(t / math.sqrt(degrees))
    odd = degrees % 2
    steps = np.arange(2 + odd, degrees - 1, 2, dtype=np.float64)  # each term is the one before times (s − 1)/s · cos² θ
    terms = math.cos(theta) ** odd * np.cumprod(np.concatenate([[1.0], (steps - 1) / steps * math.cos(theta) ** 2]))
    if odd:
        return 2 / math.pi * (theta + (math.sin(theta) * float(terms.sum()) if degrees > 1 else 0.0))
    return math.sin(theta) * float(terms.sum())


@functools.cache
def t_quantile(degrees: int, confidence: float = CONFIDENCE) -> float:
    """Find the t with P(|T| < t) = 0.95, or another confidence up to that, by bisection.

    Example: 12.706 at 1 degree of freedom, 2.262 at 9, 1.984 at 99. (SciPy is no dependency of ours, so this stands here.)
    """
    low, high = 0.0, 13.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if t_probability(middle, degrees) < confidence else (low, middle)
    return high


def smallest_difference(std: float, num_clusters: int) -> float:
    """Compute the smallest true difference that so many clusters show in 80 % of cases (Miller 2024, arXiv 2411.00640).

        δ = (z_0.975 + z_0.8) · s / √n = 2.80 · s / √n

    Example: s = 0.5 and n = 100 give 0.140.

    Args:
        std: s, the standard deviation between clusters; δ has its unit.
        num_clusters: n.
    """
    return (Z + NormalDist().inv_cdf(POWER)) * std / math.sqrt(num_clusters)
