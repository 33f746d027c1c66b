"""Which of several models may be the best, given that the one that looks best was picked by looking.

Axes: P prompts, K models, D draws.
"""

from statistics import NormalDist

import numpy as np

from stages.statistics.bootstrap import DRAWS, resample
from stages.statistics.intervals import Floats, t_quantile

_LEVEL = 0.95


def find_highest(values_PK: Floats, *, draws: int = DRAWS, seed: int = 0) -> list[bool]:
    """Find the models that may have the highest mean: with 95 % confidence the truly highest one is among them.

    The model with the highest measured mean is picked by its luck too, so it says little by itself. Model k is left out where it lies
    below some other by more than chance makes the truly highest model lie below the others (Hsu 1981, multiple comparisons with the best):

        max_j (m_j − m_k)  >  q_0.95 of  max_j ((m*_j − m_j) − (m*_k − m_k)),   m* of prompts drawn with replacement

    If k is the truly highest, μ_j − μ_k ≤ 0 for all j, so its left side is at most the maximum whose quantile stands on the right.
    Draws of few prompts vary too little: they are stretched by √(n / (n − 1)) · t_(0.95, n − 1) / z_0.95, as by Hesterberg (`bootstrap`).

    Example: two models, values 0 and 1 on every prompt: the second alone. Values that are equal in the mean: both.

    Args:
        values_PK: Of the same prompts; finite.

    Returns:
        Of each model whether it may be the highest; of one prompt, which shows no spread, all may be.
    """
    num_prompts, num_models = values_PK.shape
    if num_prompts < 2:
        return [True] * num_models
    means_K = values_PK.mean(axis=0)
    errors_DK = np.concatenate([counts_DP @ values_PK / num_prompts for counts_DP in resample(num_prompts, draws, seed)]) - means_K
    errors_DK *= np.sqrt(num_prompts / (num_prompts - 1)) * t_quantile(num_prompts - 1, 2 * _LEVEL - 1) / NormalDist().inv_cdf(_LEVEL)
    luck_DK = errors_DK.max(axis=1, keepdims=True) - errors_DK
    return [bool(means_K.max() - means_K[k] <= np.quantile(luck_DK[:, k], _LEVEL) + 1e-12) for k in range(num_models)]
