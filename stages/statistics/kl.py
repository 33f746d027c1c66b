"""Log ratios of the tokens that a policy said -> how far it is from the reference.

Axes: N responses, R response tokens. `response_mask_NR` is True at a real token. A log ratio is log π − log π_ref.
"""

import numpy as np
from numpy.typing import NDArray

from stages.statistics.intervals import Floats

Mask = NDArray[np.bool_]


def sum_k1(log_ratios_NR: Floats, response_mask_NR: Mask) -> Floats:
    """Sum x = log π − log π_ref over the tokens of each response (Schulman 2020, "Approximating KL divergence", k1).

    Unbiased for KL(π ‖ π_ref), in nats; may be negative.
    """
    return np.where(response_mask_NR, log_ratios_NR, 0.0).sum(axis=1)


def sum_k3(log_ratios_NR: Floats, response_mask_NR: Mask) -> Floats:
    """Sum exp(−x) − 1 + x over the tokens of each response (Schulman 2020, k3); infinite where a ratio is beyond a float.

    The sign stands for samples of π. exp(x) − 1 − x, often seen, is the estimator for samples of π_ref, of the other KL.

    Example: x = 0.5 and −0.5 give 0.1065 and 0.1487.
    """
    masked_NR = np.where(response_mask_NR, log_ratios_NR, 0.0)
    with np.errstate(over="ignore"):
        return (np.expm1(-masked_NR) + masked_NR).sum(axis=1)
