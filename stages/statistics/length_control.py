"""Outcomes and differences of length -> the win rate that would be left at equal length.

Axes: N pairs of answers, C prompts, D draws.
"""

import numpy as np

from stages.statistics.bootstrap import DRAWS, Estimate, percentile_interval, resample, sum_by_cluster
from stages.statistics.intervals import Floats, Ints, wilson_interval

# Weak normal priors keep the fit finite where length tells wins from losses without error; their widths are those that
# Gelman et al. 2008 (arXiv 0901.4011) give their Cauchy priors for standardised inputs.
_INTERCEPT_STD, _SLOPE_STD = 10.0, 2.5
_MAX_STEP = 2.0  # of Newton's method, on the scale of log odds
_BLOCK = 100_000  # numbers held at once: they stay in a cache


def fit_logistic(
    outcomes_N: Floats, inputs_N: Floats, weights_DN: Floats, start: tuple[float, float] = (0.0, 0.0)
) -> tuple[Floats, Floats]:
    """Fit P(win) = σ(α + β · x) by weighted maximum likelihood with weak priors, for all draws at once.

        maximise Σ_i w_i · (y_i · log p_i + (1 − y_i) · log(1 − p_i)) − α² / (2 · 10²) − β² / (2 · 2.5²)

    Newton's method; the function is concave, so that there is one maximum.

    Args:
        outcomes_N: y in [0, 1].
        inputs_N: x, about 1 in size.
        weights_DN: w, not negative.
        start: α and β to climb from.

    Returns:
        (α_D, β_D).
    """
    alpha_D, beta_D = np.full(len(weights_DN), start[0]), np.full(len(weights_DN), start[1])
    for _ in range(100):
        wins_DN = 1 / (1 + np.exp(-(alpha_D[:, None] + beta_D[:, None] * inputs_N)))
        residuals_DN = weights_DN * (outcomes_N - wins_DN)
        curvature_DN = weights_DN * wins_DN * (1 - wins_DN)
        slope_alpha_D = residuals_DN.sum(axis=1) - alpha_D / _INTERCEPT_STD**2
        slope_beta_D = residuals_DN @ inputs_N - beta_D / _SLOPE_STD**2
        aa_D = curvature_DN.sum(axis=1) + 1 / _INTERCEPT_STD**2
        ab_D, bb_D = curvature_DN @ inputs_N, curvature_DN @ inputs_N**2 + 1 / _SLOPE_STD**2
        determinant_D = aa_D * bb_D - ab_D**2
        step_alpha_D = np.clip((bb_D * slope_alpha_D - ab_D * slope_beta_D) / determinant_D, -_MAX_STEP, _MAX_STEP)
        step_beta_D = np.clip((aa_D * slope_beta_D - ab_D * slope_alpha_D) / determinant_D, -_MAX_STEP, _MAX_STEP)
        alpha_D, beta_D = alpha_D + step_alpha_D, beta_D + step_beta_D
        if max(np.abs(step_alpha_D).max(), np.abs(step_beta_D).max()) < 1e-5:  # what is left is about its square
            break
    return alpha_D, beta_D


def control_length(
    outcomes_N: Floats, length_differences_N: Floats, prompts_N: Ints, *, draws: int = DRAWS, seed: int = 0
) -> Estimate | None:
    """Compute the win rate at equal length, σ(α) of P(win) = σ(α + β · Δ / s); prompts weigh alike.

    After AlpacaEval's length-controlled win rate (Dubois et al. 2024, arXiv 2404.04475). Differs: 1. the model has no term for a
    prompt's difficulty, which would have to come from other models; 2. Δ / s in place of tanh(Δ / s); 3. the interval is that of the
    estimate: the model is fitted anew in every draw of prompts.

    Example: B wins 80 % where it is longer by s and 50 % where it is shorter by s: α = (log 4 + log 1) / 2, σ(α) = 2/3.

    Args:
        outcomes_N: 1 where B is better, 0 where A is, 0.5 for a tie.
        length_differences_N: length of B's answer − length of A's, in tokens or characters.
        prompts_N: which prompt each belongs to.

    Returns:
        None where all differences are one number other than 0: nothing tells what length does.
    """
    spread = float(length_differences_N.std())
    if spread == 0 and len(outcomes_N) and length_differences_N[0] != 0:
        return None
    inputs_N = length_differences_N / spread if spread else length_differences_N
    sum_by_cluster(inputs_N, prompts_N)  # refuses what is not finite
    sums_C, sizes_C = sum_by_cluster(outcomes_N, prompts_N)
    _, places_N = np.unique(prompts_N, return_inverse=True)
    weights_N = 1 / sizes_C[places_N]
    alpha, beta = fit_logistic(outcomes_N, inputs_N, weights_N[None])
    value, num_prompts = float(_sigmoid(alpha)[0]), len(sums_C)
    if num_prompts < 2 or np.ptp(outcomes_N) == 0:
        low, high = wilson_interval(float((sums_C / sizes_C).sum()), num_prompts)
    else:
        alpha_D = _refit(outcomes_N, inputs_N, weights_N, places_N, num_prompts, (float(alpha[0]), float(beta[0])), draws, seed)
        low, high = (float(bound) for bound in percentile_interval(_sigmoid(alpha_D), num_prompts))
    return Estimate(value, low, high, len(outcomes_N), num_prompts)


def _refit(
    outcomes_N: Floats,
    inputs_N: Floats,
    weights_N: Floats,
    places_N: Ints,
    num_prompts: int,
    best: tuple[float, float],
    draws: int,
    seed: int,
) -> Floats:
    """Fit the model in each draw of prompts; returns alpha_D."""
    rows = max(1, _BLOCK // len(outcomes_N))
    fitted = [
        fit_logistic(outcomes_N, inputs_N, weights_N * counts_DC[start : start + rows, places_N], best)[0]
        for counts_DC in resample(num_prompts, draws, seed)
        for start in range(0, len(counts_DC), rows)
    ]
    return np.concatenate(fitted)


def _sigmoid(log_odds: Floats) -> Floats:
    return 1 / (1 + np.exp(-log_odds))
