"""PPO-ptx: the likelihood of demonstrations or texts beside PPO's objective, so that the policy does not forget what it was taught.

    objective = objective of PPO + γ · E[log π(response | prompt)] over demonstrations    (InstructGPT 2022, eq. 2; γ is `ptx_coef`)

A piece of a text counts as a demonstration whose prompt is its first token (`data.texts`).

Differs: 1. demonstrations by default; with `ptx_data: texts` pretraining text, as there; 2. the mean is over response tokens, as in SFT.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from data.tokens import EncodedPair
from stages.ppo.experience import split_alike
from stages.ppo.learner import Learner
from stages.ppo.sampler import PromptSampler
from stages.process.ranks import Ranks
from stages.responses.rollout import Rollout, pack_rollout


class DemonstrationSampler:
    """Draws the demonstrations of each optimizer step, without replacement, each rank its own share."""

    def __init__(self, pairs: Sequence[EncodedPair], batch_size: int, pad_token_id: int, seed: int) -> None:
        self.pairs = pairs
        self.batch_size = batch_size  # over all ranks
        self.pad_token_id = pad_token_id
        self.sampler = PromptSampler(len(pairs), seed)

    def draw(self, ranks: Ranks) -> Rollout:
        """Draw this rank's share of the next demonstrations: responses that somebody else wrote."""
        drawn = [self.pairs[index] for index in self.sampler.draw(self.batch_size, ranks.index, ranks.count)]
        prompts, responses = [pair.prompt_ids for pair in drawn], [pair.response_ids for pair in drawn]
        return pack_rollout(prompts, responses, [True] * len(drawn), self.pad_token_id, ranks.device)


def accumulate_ptx_gradients(ranks: Ranks, actor: Learner, demonstrations: Rollout, ptx_coef: float, max_tokens: int) -> Tensor:
    """Add the gradients of γ · mean of −log π over the response tokens of all ranks; the ranks do not meet yet.

    Args:
        ranks: share the demonstrations.
        actor: the policy in training; its last micro-step before the optimizer's step must follow.
        demonstrations: of this rank.
        ptx_coef: γ.
        max_tokens: of a micro-batch.

    Returns:
        [sum of −log π over this rank's response tokens, their number].
    """
    num_tokens = demonstrations.response_mask_BR.sum()
    # The ranks' gradients are averaged, the loss is a mean over all their tokens: hence the number of processes.
    scale = ptx_coef * ranks.count / ranks.sum(num_tokens)
    losses: list[Tensor] = []
    for rows_b in split_alike(ranks, demonstrations, max_tokens):
        row, predictors_K = demonstrations.select(rows_b).pack()
        with actor.micro_step(last=False):
            logprobs_K, _ = actor(row, predictors_K, 1.0)  # at temperature 1: the likelihood, not how we sample
            loss = -logprobs_K.sum()
            actor.backward(loss * scale)
            losses.append(loss.detach())
    return torch.stack([torch.stack(losses).sum(), num_tokens.float()])
