"""Run by test_two_ranks.py on each rank: this rank's half of an experience -> whitened advantages, gradients, score moments."""

import importlib.util
import sys
from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator

from stages.ppo.advantages import explain_variance, scale_by_std, whiten
from stages.ppo.budget import TokenBudget
from stages.ppo.ptx import DemonstrationSampler
from stages.ppo.ranks import gather_experience, max_over_ranks, sum_over_ranks
from stages.ppo.score_rules import RunningMoments
from stages.ppo.update import accumulate_gradients, update

BUDGET = TokenBudget(32)


def make_rules(models, **changes):
    """One step on everything."""
    return models.make_rules(ppo_epochs=1, minibatch_size=8, **changes)


def make_learners(models, accelerator):
    """Policy and critic, and their learners, which clip."""
    both = models.make_both()
    return both, models.make_learners(both, accelerator, learning_rate=1.0, max_grad_norm=0.05)


def compute(accelerator, models):
    """Everything that crosses ranks, on this rank's contiguous share of one fixed experience."""
    world_size, rank = accelerator.num_processes, accelerator.process_index
    rules = make_rules(models)
    everything = models.make_experience()
    share = everything.select(torch.arange(rank, 8, world_size))

    def total(tensor):
        return sum_over_ranks(accelerator, tensor)

    moments = RunningMoments()
    moments.update(share.returns_BR[:, 0], total)
    figures = {
        "whitened": whiten(share.advantages_BR, share.response_mask_BR, total)[share.response_mask_BR],
        "scaled": scale_by_std(share.returns_BR, share.response_mask_BR, total)[share.response_mask_BR],
        "explained": explain_variance(share.old_values_BR, share.returns_BR, share.response_mask_BR, total),
        "moments": torch.tensor([moments.count, moments.mean, moments.std]),
        "largest": max_over_ranks(accelerator, torch.tensor(float(rank))),
    }
    both, learners = make_learners(models, accelerator)
    accumulate_gradients(*learners, share, rules, accelerator, nullcontext(), BUDGET.max_tokens)
    gradients = {name: parameter.grad.clone() for name, parameter in both.named_parameters()}
    for learner in learners:
        learner.drop_gradients()
    gathered = gather_experience(share, accelerator)
    stats = update(*learners, gathered, rules, 0, accelerator, nullcontext(), budget=BUDGET)
    weights = {name: parameter.detach().clone() for name, parameter in both.named_parameters()}
    update(*learners, gathered, rules, 1, accelerator, nullcontext(), budget=BUDGET, train_policy=False)
    warmed_up = {name: parameter.detach().clone() for name, parameter in both.named_parameters()}
    mixed = mix_demonstrations(accelerator, models, gathered)
    return {
        "figures": figures,
        "gathered": vars(gathered),
        "gradients": gradients,
        "weights": weights,
        "stats": figures_of(stats),
        "warmed_up": warmed_up,
        "mixed": mixed,
    }


def figures_of(stats):
    return {name: value for name, value in vars(stats).items() if value is not None}


def mix_demonstrations(accelerator, models, experience):
    """Two updates with PPO-ptx: the weights after them and the likelihood that the second reports."""
    both, learners = make_learners(models, accelerator)
    demonstrations = DemonstrationSampler(models.make_demonstrations(), batch_size=4, pad_token_id=0, seed=3)
    rules = make_rules(models, ptx_coef=2.0)
    stats = [
        update(*learners, experience, rules, seed, accelerator, nullcontext(), budget=TokenBudget(10), demonstrations=demonstrations)
        for seed in (0, 1)
    ]
    weights = {name: parameter.detach().clone() for name, parameter in both.named_parameters()}
    return {"weights": weights, "losses": [each.ptx_loss for each in stats]}


if __name__ == "__main__":
    torch.set_num_threads(1)
    spec = importlib.util.spec_from_file_location("models_for_tests", Path(__file__).parents[1] / "tiny_models.py")
    models = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(models)
    accelerator = Accelerator(cpu=True)
    torch.save(compute(accelerator, models), f"{sys.argv[1]}.{accelerator.process_index}of{accelerator.num_processes}")
    accelerator.end_training()
