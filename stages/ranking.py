"""The K-way ranking loss of the reward model (InstructGPT 2022, eq. 1) and what is reported of a ranking. Pure tensors.

Axes: `N` = all answers of a batch, flattened over its prompts; `Q` = pairs.
"""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from data.records import MAX_GRADE, MIN_GRADE
from stages.process.gpu import send

_MOST_APART = MAX_GRADE - MIN_GRADE
_BINS = 10  # of confidences


@dataclass(frozen=True)
class Pairs:
    """All pairs (better, worse) of answers to the same prompt; ties make no pair."""

    better_Q: Tensor  # long: index of the better answer
    worse_Q: Tensor  # long: index of the worse answer
    weight_Q: Tensor  # float: 1 / (pairs of that prompt x prompts with a pair); sums to 1
    distance_Q: Tensor  # long: difference of the two ranks
    num_prompts: int  # prompts with a pair

    def send(self, device: torch.device) -> Self:
        """Copy them to a device."""
        tensors = {name: send(value, device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **tensors)


def make_pairs(ranks_N: Tensor, prompts_N: Tensor) -> Pairs:
    """Pair all answers of one prompt.

    Args:
        ranks_N: long, 1 = best; equal ranks are ties.
        prompts_N: long, which prompt each answer belongs to.
    """
    same_prompt_NN = prompts_N[:, None] == prompts_N[None, :]
    better_Q, worse_Q = (same_prompt_NN & (ranks_N[:, None] < ranks_N[None, :])).nonzero(as_tuple=True)
    owner_Q = prompts_N[better_Q]
    _, inverse_Q, counts = owner_Q.unique(return_inverse=True, return_counts=True)
    weight_Q = 1.0 / (counts[inverse_Q].float() * max(len(counts), 1))
    return Pairs(better_Q, worse_Q, weight_Q, ranks_N[worse_Q] - ranks_N[better_Q], len(counts))


def grade_margins(grades_N: Tensor, pairs: Pairs) -> Tensor:
    """Compute how far apart the grades of each pair say that its answers are; shape Q, in [0, 1].

        m = max(0, g_better − g_worse) / 6,   0 where one of the two has no grade

    Llama 2 (Touvron et al. 2023, arXiv 2307.09288), 3.2.2: a discrete m(r) of four labels, "significantly better" (1) to "negligibly
    better" (0). Differs: 1. from grades of 1 to 7, of which 6 apart is the most; 2. grades that contradict the ranks give no margin.

    Example: grades 7 and 4, better first: 0.5.

    Args:
        grades_N: float, 1 to 7; NaN for an answer without one.
        pairs: of those answers.
    """
    apart_Q = (grades_N[pairs.better_Q] - grades_N[pairs.worse_Q]) / _MOST_APART
    return apart_Q.nan_to_num(0.0).clamp(min=0.0)


def ranking_loss(scores_N: Tensor, pairs: Pairs, required_Q: Tensor | None = None) -> Tensor:
    """Compute loss = mean over prompts of mean over pairs of −log σ(s_better − s_worse − m).

    InstructGPT (Ouyang et al. 2022, arXiv 2203.02155), eq. 1: the mean over the C(K,2) pairs of one prompt, all from
    the same K scores. Differs: 1. tied answers make no pair, and the mean runs over the pairs that remain.

    Args:
        scores_N: float, one score per answer.
        pairs: of those answers.
        required_Q: m, by how much the better answer's score shall be higher at least (Llama 2, eq. 2); None: 0.

    Returns:
        Scalar; 0 with a gradient of 0 where no pair exists.
    """
    margins_Q = scores_N.float()[pairs.better_Q] - scores_N.float()[pairs.worse_Q]
    if required_Q is not None:
        margins_Q = margins_Q - required_Q
    return -(F.logsigmoid(margins_Q) * pairs.weight_Q).sum()


def pair_accuracy(scores_N: Tensor, pairs: Pairs) -> Tensor:
    """Tell for each pair whether the better answer scores higher: 1, 0, or 0.5 for equal scores; shape Q."""
    margins_Q = scores_N[pairs.better_Q] - scores_N[pairs.worse_Q]
    return (torch.sign(margins_Q) + 1) / 2


def calibration_error(scores_N: Tensor, pairs: Pairs) -> float:
    """Measure how far P(better wins) = σ(|margin|) is from the share that wins: expected calibration error in [0, 1].

    Equal scores prefer no side at a confidence of 0.5, and are right in half of the cases.
    """
    margins_Q = scores_N[pairs.better_Q] - scores_N[pairs.worse_Q]
    confidence_Q = torch.sigmoid(margins_Q.abs())  # in [0.5, 1]: of the side that the model prefers
    correct_Q = pair_accuracy(scores_N, pairs)
    bin_Q = ((confidence_Q - 0.5) * 2 * _BINS).long().clamp(max=_BINS - 1)
    error = 0.0
    for index in range(_BINS):
        inside_Q = bin_Q == index
        if inside_Q.any():
            error += inside_Q.float().mean().item() * abs((confidence_Q[inside_Q].mean() - correct_Q[inside_Q].mean()).item())
    return error


def correlation(x_N: Tensor, y_N: Tensor) -> float:
    """Pearson's correlation; 0 where one of the two does not vary."""
    if len(x_N) < 2 or x_N.std() == 0 or y_N.std() == 0:
        return 0.0
    return torch.corrcoef(torch.stack([x_N.double(), y_N.double()]))[0, 1].item()
