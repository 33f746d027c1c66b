"""Rankings of the same answers by several people -> how far they agree, and how far the place of an answer sways them.

Axes: A annotators, U units (what each values), V different values, C clusters (prompts), D draws. What somebody did not value is NaN.
"""

from typing import Literal

import numpy as np

from stages.statistics.bootstrap import DRAWS, Estimate, estimate_share, percentile_interval, resample
from stages.statistics.intervals import Floats, Ints

Level = Literal["nominal", "ordinal", "interval"]
_PAIR = 2


def measure_alpha(values_AU: Floats, clusters_U: Ints, level: Level = "ordinal", *, draws: int = DRAWS) -> Estimate | None:
    """Measure Krippendorff's alpha, with its interval by cluster bootstrap (Krippendorff 2011, "Computing Krippendorff's Alpha").

        alpha = 1 − (n − 1) · Σ_ck o_ck · δ²_ck / Σ_ck n_c · n_k · δ²_ck

        o_ck   coincidences: of each unit with m values, its ordered pairs (c, k) by different people, / (m − 1)
        n_c    Σ_k o_ck,  n = Σ_c n_c
        δ²_ck  nominal: c ≠ k;  interval: (c − k)²;  ordinal: (Σ_{g = c..k} n_g − (n_c + n_k) / 2)²

    1: all agree; 0: as by chance; below: worse than chance. A unit that only one person valued says nothing and is left out.

    Example: values 1 2 and 1 2 of two people: alpha 1. 1 2 and 2 1: each o_12 is 2, n = 4, 1 − 3 · 4 / (2 · 2 · 2) = −0.5.

    Args:
        values_AU: of annotator a for unit u; NaN where there is none.
        clusters_U: which prompt each unit belongs to.
        level: how values compare.
        draws: bootstrap draws.

    Returns:
        None where no unit has two values, or all values are the same, so that chance agrees too.
    """
    counted_U = (~np.isnan(values_AU)).sum(axis=0) >= _PAIR
    values_AU, clusters_U = values_AU[:, counted_U], clusters_U[counted_U]
    levels_V = np.unique(values_AU[~np.isnan(values_AU)])
    if len(levels_V) < _PAIR:
        return None
    names_C, places_U = np.unique(clusters_U, return_inverse=True)
    counts_UV = (values_AU[:, :, None] == levels_V).sum(axis=0).astype(np.float64)
    in_unit_U = counts_UV.sum(axis=1)
    coincidences_UVV = counts_UV[:, :, None] * counts_UV[:, None, :] - counts_UV[:, :, None] * np.eye(len(levels_V))
    coincidences_CVV = np.zeros((len(names_C), len(levels_V), len(levels_V)))
    np.add.at(coincidences_CVV, places_U, coincidences_UVV / (in_unit_U - 1)[:, None, None])
    num_values, num_clusters = int(in_unit_U.sum()), len(names_C)
    value = float(_alpha(coincidences_CVV.sum(axis=0)[None], levels_V, level)[0])
    if num_clusters < _PAIR:
        return Estimate(value, None, None, num_values, num_clusters)
    flat_CE = coincidences_CVV.reshape(num_clusters, -1)
    shape = (-1, len(levels_V), len(levels_V))
    drawn = [_alpha((counts_DC @ flat_CE).reshape(shape), levels_V, level) for counts_DC in resample(num_clusters, draws, seed=0)]
    alphas_D = np.concatenate(drawn)
    low, high = percentile_interval(alphas_D[np.isfinite(alphas_D)], num_clusters)  # a draw may have one value alone
    return Estimate(value, float(low), float(high), num_values, num_clusters)


def _alpha(coincidences_DVV: Floats, levels_V: Floats, level: Level) -> Floats:
    totals_DV = coincidences_DVV.sum(axis=2)
    total_D = totals_DV.sum(axis=1)
    if level == "nominal":
        distances_DVV = np.broadcast_to(1 - np.eye(len(levels_V)), coincidences_DVV.shape)
    elif level == "interval":
        distances_DVV = np.broadcast_to((levels_V[:, None] - levels_V) ** 2, coincidences_DVV.shape)
    else:
        middles_DV = totals_DV.cumsum(axis=1) - totals_DV / 2  # so that the sum over g = c..k less half of both ends is a difference
        distances_DVV = (middles_DV[:, :, None] - middles_DV[:, None, :]) ** 2
    observed_D = (coincidences_DVV * distances_DVV).sum(axis=(1, 2))
    expected_D = (totals_DV[:, :, None] * totals_DV[:, None, :] * distances_DVV).sum(axis=(1, 2))
    with np.errstate(divide="ignore", invalid="ignore"):
        return 1 - (total_D - 1) * observed_D / expected_D


def measure_tau_b(x_N: Floats, y_N: Floats) -> float | None:
    """Measure Kendall's tau-b of two rankings of the same answers (Kendall 1945, "The treatment of ties in ranking problems").

        tau_b = (P − Q) / √((P + Q + T_x) · (P + Q + T_y))

        P, Q  pairs that both order alike, oppositely;  T_x, T_y  pairs tied in x alone, in y alone

    Example: 1 2 3 and 1 3 2: P = 2, Q = 1, tau_b = 1/3.

    Returns:
        None where one of the two ties all answers.
    """
    first, second = np.triu_indices(len(x_N), k=1)
    x_Q, y_Q = np.sign(x_N[first] - x_N[second]), np.sign(y_N[first] - y_N[second])
    untied = np.sqrt(float((x_Q != 0).sum()) * float((y_Q != 0).sum()))
    return float((x_Q * y_Q).sum()) / untied if untied else None


def measure_position_bias(ranks_NK: Floats, prompts_N: Ints, *, draws: int = DRAWS, seed: int = 0) -> Estimate | None:
    """Measure how often of two answers the one that was shown first is ranked better; 0.5 without bias, where the order is random.

    Example: ranks 1 2 3 in the order shown: 3 of 3 pairs.

    Args:
        ranks_NK: of the answers in the order in which they were shown, 1 best; NaN where an answer was not ranked. Ties do not count.
        prompts_N: what each ranking is of.
        draws: bootstrap draws.
        seed: of them.

    Returns:
        The share, with its interval by resampling prompts; None where no pair is ranked.
    """
    first, second = np.triu_indices(ranks_NK.shape[1], k=1)
    margins_NQ = ranks_NK[:, second] - ranks_NK[:, first]
    told_NQ = np.isfinite(margins_NQ) & (margins_NQ != 0)
    if not told_NQ.any():
        return None
    prompts_NQ = np.broadcast_to(prompts_N[:, None], margins_NQ.shape)
    return estimate_share((margins_NQ[told_NQ] > 0).astype(np.float64), prompts_NQ[told_NQ], draws=draws, seed=seed)
