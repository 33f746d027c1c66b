"""Which of many answers people are asked to rank: those whose scores may lie furthest apart. Pure functions of tensors.

states of ranked answers -> precision of the reward model's head -> optimistic gap of each pair -> the answers that are shown

The heads are an ensemble without end on the one backbone: w ~ N(ŵ, Λ⁻¹) around the trained one, so that the spread of a score's difference
has a closed form. Some heads fitted on resampled comparisons would agree in every direction that no comparison shows, where a ridge keeps
all of them at the same place (Osband et al. 2018, arXiv 1806.03335); here the prior's whole variance is left there.

Axes: H size of a hidden state, Q pairs of ranked answers, K answers to a prompt.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from stages.ranking import make_pairs


class Evidence(NamedTuple):
    """What pairs of ranked answers say of a head; that of several batches is added up."""

    precision_HH: Tensor  # float64: Σ ω p (1 − p) z zᵀ
    length: Tensor  # float64: Σ |z|²
    pairs: Tensor  # float64: how many


def measure_evidence(states_NH: Tensor, logits_N: Tensor, ranks_N: Tensor, prompts_N: Tensor) -> Evidence:
    """Measure what ranked answers say of a reward model's head: the curvature of its loss, at the trained head.

        Λ_data = Σ ω p (1 − p) z zᵀ,   z = h_better − h_worse,   p = σ(l_better − l_worse),   ω = 2 / K

    Bishop 2006, 4.5.1 (eq. 4.142), for the Bradley-Terry model; of the last layer alone as in Daxberger et al. 2021 (arXiv 2106.14806).
    Differs: 1. ω: of the K (K − 1) / 2 pairs of a ranking without ties only K − 1 say something new.

    Args:
        states_NH: Last hidden states, at each answer's last token.
        logits_N: What the trained head makes of them, not calibrated.
        ranks_N: 1 = best, of answers to the same prompt.
        prompts_N: Which prompt each answers.
    """
    pairs = make_pairs(ranks_N, prompts_N)
    states_NH, logits_N = states_NH.double(), logits_N.double()
    z_QH = states_NH[pairs.better_Q] - states_NH[pairs.worse_Q]
    p_Q = torch.sigmoid(logits_N[pairs.better_Q] - logits_N[pairs.worse_Q])
    omega_Q = 2 / torch.bincount(prompts_N)[prompts_N[pairs.better_Q]]
    precision_HH = z_QH.T @ (z_QH * (omega_Q * p_Q * (1 - p_Q))[:, None])
    return Evidence(precision_HH, z_QH.square().sum(), torch.tensor(len(z_QH), dtype=torch.float64, device=z_QH.device))


def factor_precision(evidence: Evidence) -> Tensor:
    """Factor the precision of the heads: Λ = λ I + Λ_data = L Lᵀ; returns L, float64.

    λ is the mean |z|² of the ranked pairs: before any data the scores of such a pair differ by a standard deviation of 1 nat, whatever the
    scale of the states.
    """
    prior = evidence.length / evidence.pairs
    return torch.linalg.cholesky(evidence.precision_HH + prior * torch.eye(len(evidence.precision_HH), dtype=torch.float64))


def whiten(states_KH: Tensor, factor_HH: Tensor) -> Tensor:
    """Turn states so that heads spread alike in all directions: u = L⁻¹ h; float64.

    Of w ~ N(ŵ, Λ⁻¹) the difference of the scores of two answers then has the standard deviation |u_i − u_j|.
    """
    return torch.linalg.solve_triangular(factor_HH, states_KH.double().T, upper=False).T


def measure_gaps(whitened_KH: Tensor, logits_K: Tensor, beta: float) -> Tensor:
    """Measure by how much the scores of two answers may differ: gap_ij = |l_i − l_j| + β · σ_ij; shape K, K, its diagonal 0.

    DeltaUCB (Melikidze et al. 2026, arXiv 2603.09692) shows the pair with the largest upper bound of one answer's score less the lower
    bound of the other's, l_i + β σ_i − (l_j − β σ_j). Differs: 1. σ_ij is that of the difference, std(w·h_i − w·h_j) = |u_i − u_j|, in
    place of σ_i + σ_j: what heads disagree about in both answers alike, such as their prompt, decides nothing (as in dueling bandits:
    Das et al. 2024, arXiv 2402.10500).

    Args:
        whitened_KH: States, see `whiten`.
        logits_K: Of the trained head.
        beta: How much uncertainty counts.
    """
    means_KK = (logits_K[:, None] - logits_K[None, :]).double().abs()
    return means_KK + beta * (whitened_KH[:, None] - whitened_KH[None, :]).norm(dim=-1)


def choose_answers(gaps_KK: Tensor, number: int) -> list[int]:
    """Choose answers that lie far apart from each other: the pair with the largest gap, then whichever adds most to the sum of gaps.

    People rank them all, and the reward model learns from each pair. The sum is at least half of the best one's: gaps obey the triangle
    inequality (Ravi et al. 1994, Operations Research 42(2); Birnbaum and Goldman 2009). Of equal ones the first.

    Args:
        gaps_KK: See `measure_gaps`.
        number: How many, at least 2; all where there are no more.

    Returns:
        Their places, in order.
    """
    if len(gaps_KK) <= number:
        return list(range(len(gaps_KK)))
    pairs_KK = torch.ones_like(gaps_KK, dtype=torch.bool).triu(1)
    chosen = list(divmod(int(gaps_KK.masked_fill(~pairs_KK, -1.0).argmax()), len(gaps_KK)))
    while len(chosen) < number:
        sums_K = gaps_KK[chosen].sum(dim=0)
        sums_K[chosen] = -1.0
        chosen.append(int(sums_K.argmax()))
    return sorted(chosen)
