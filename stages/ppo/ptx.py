"""PPO-ptx: the likelihood of demonstrations beside PPO's objective, so that the policy does not forget what SFT taught it.

    objective = objective of PPO + γ · E[log π(response | prompt)] over demonstrations    (InstructGPT 2022, eq. 2; γ is `ptx_coef`)

Differs: 1. demonstrations instead of pretraining text, which this pipeline does not have; 2. the mean is over response tokens, as in SFT.
"""

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from data.tokens import EncodedPair
from stages.ppo.actor_critic import compute_token_logprobs
from stages.ppo.experience import Rollout, pack_rollout
from stages.ppo.ranks import sum_over_ranks, unwrap
from stages.ppo.rollout import Autocast
from stages.ppo.sampler import PromptSampler


class DemonstrationSampler:
    """Draws the demonstrations of each optimizer step, without replacement, each rank its own share."""

    def __init__(self, pairs: Sequence[EncodedPair], batch_size: int, pad_token_id: int, seed: int) -> None:
        self.pairs = pairs
        self.batch_size = batch_size  # over all ranks
        self.pad_token_id = pad_token_id
        self.sampler = PromptSampler(len(pairs), seed)

    def draw(self, accelerator: Accelerator) -> Rollout:
        """Draw this rank's share of the next demonstrations: responses that somebody else wrote."""
        drawn = [self.pairs[index] for index in self.sampler.draw(self.batch_size, accelerator.process_index, accelerator.num_processes)]
        prompts, responses = [pair.prompt_ids for pair in drawn], [pair.response_ids for pair in drawn]
        return pack_rollout(prompts, responses, [True] * len(drawn), self.pad_token_id, accelerator.device)


def accumulate_ptx_gradients(
    model: nn.Module, demonstrations: Rollout, ptx_coef: float, max_tokens: int, accelerator: Accelerator, autocast: Autocast
) -> Tensor:
    """Add the gradients of γ · mean of −log π over the response tokens of all ranks; the ranks do not meet yet.

    Args:
        model: the prepared ActorCritic; a backward pass that ranks share must follow, before the optimizer's step.
        demonstrations: of this rank.
        ptx_coef: γ.
        max_tokens: of a micro-batch.
        accelerator: sums over ranks, backward.
        autocast: precision of the forwards.

    Returns:
        [sum of −log π over this rank's response tokens, their number].
    """
    num_tokens = demonstrations.response_mask_BR.sum()
    # The ranks' gradients are averaged, the loss is a mean over all their tokens: hence the number of processes.
    scale = ptx_coef * accelerator.num_processes / sum_over_ranks(accelerator, num_tokens)
    policy = unwrap(accelerator, model).policy  # without the critic: while ranks do not meet, a wrapper need not see the forward
    losses: list[Tensor] = []
    with accelerator.no_sync(model):
        for rows_b in demonstrations.split(max_tokens):
            row, predictors_K = demonstrations.select(rows_b).pack()
            with autocast:
                logprobs_K, _ = compute_token_logprobs(policy, row, predictors_K, temperature=1.0)  # the likelihood, not how we sample
            loss = -logprobs_K.sum()
            accelerator.backward(loss * scale)
            losses.append(loss.detach())
    return torch.stack([torch.stack(losses).sum(), num_tokens.float()])
