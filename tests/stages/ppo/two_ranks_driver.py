"""Run by test_two_ranks.py on each rank: this rank's half of an experience -> whitened advantages, gradients, score moments."""

import importlib.util
import sys
from pathlib import Path

import torch
from accelerate import Accelerator

from stages.ppo.advantages import explain_variance, scale_by_std, whiten
from stages.ppo.budget import TokenBudget
from stages.ppo.experience import gather_experience
from stages.ppo.ptx import DemonstrationSampler
from stages.ppo.score_rules import RunningMoments
from stages.ppo.update import Updater
from stages.process.ranks import Ranks

BUDGET = TokenBudget(32)


def make_rules(models, **changes):
    """One step on everything."""
    return models.make_rules(ppo_epochs=1, minibatch_size=8, **changes)


def make_learners(models, ranks):
    """Policy and critic, and their learners, which clip."""
    both = models.make_both()
    return both, models.make_learners(both, ranks, learning_rate=1.0, max_grad_norm=0.05)


def compute(ranks, models):
    """Everything that crosses ranks, on this rank's contiguous share of one fixed experience."""
    rules = make_rules(models)
    everything = models.make_experience()
    share = everything.select(torch.arange(ranks.index, 8, ranks.count))

    moments = RunningMoments()
    moments.update(share.returns_BR[:, 0], ranks.sum)
    figures = {
        "whitened": whiten(share.advantages_BR, share.response_mask_BR, ranks.sum)[share.response_mask_BR],
        "scaled": scale_by_std(share.returns_BR, share.response_mask_BR, ranks.sum)[share.response_mask_BR],
        "explained": explain_variance(share.old_values_BR, share.returns_BR, share.response_mask_BR, ranks.sum),
        "moments": torch.tensor([moments.count, moments.mean, moments.std]),
        "largest": ranks.max(torch.tensor(float(ranks.index))),
    }
    both, learners = make_learners(models, ranks)
    updater = Updater(ranks, *learners, rules, BUDGET)
    updater.accumulate_gradients(share, BUDGET.max_tokens)
    gradients = {name: parameter.grad.clone() for name, parameter in both.named_parameters()}
    for learner in learners:
        learner.drop_gradients()
    gathered = gather_experience(ranks, share)
    stats = updater.update(gathered, 0)
    weights = {name: parameter.detach().clone() for name, parameter in both.named_parameters()}
    updater.update(gathered, 1, train_policy=False)
    warmed_up = {name: parameter.detach().clone() for name, parameter in both.named_parameters()}
    mixed = mix_demonstrations(ranks, models, gathered)
    meetings = {max_tokens: count_meetings(updater, share, max_tokens) for max_tokens in (1, 1000)}
    return {
        "figures": figures,
        "gathered": vars(gathered),
        "gradients": gradients,
        "weights": weights,
        "stats": figures_of(stats),
        "warmed_up": warmed_up,
        "mixed": mixed,
        "meetings": meetings,
    }


def count_meetings(updater, share, max_tokens):
    """How often gradients, and sums, are added up over the ranks in a minibatch; in micro-batches of one response, or one of all."""
    num_micro_batches = len(share.split(max_tokens))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        updater.accumulate_gradients(share, max_tokens)
    for learner in (updater.actor, updater.critic):
        learner.drop_gradients()
    return num_micro_batches, sum(event.name == "gloo:all_reduce" for event in profile.events())


def figures_of(stats):
    return {name: value for name, value in vars(stats).items() if value is not None}


def mix_demonstrations(ranks, models, experience):
    """Two updates with PPO-ptx: the weights after them and the likelihood that the second reports."""
    both, learners = make_learners(models, ranks)
    demonstrations = DemonstrationSampler(models.make_demonstrations(), batch_size=4, pad_token_id=0, seed=3)
    rules = make_rules(models, ptx_coef=2.0)
    updater = Updater(ranks, *learners, rules, TokenBudget(10), demonstrations=demonstrations)
    stats = [updater.update(experience, seed) for seed in (0, 1)]
    weights = {name: parameter.detach().clone() for name, parameter in both.named_parameters()}
    return {"weights": weights, "losses": [each.ptx_loss for each in stats]}


if __name__ == "__main__":
    torch.set_num_threads(1)
    spec = importlib.util.spec_from_file_location("models_for_tests", Path(__file__).parents[1] / "tiny_models.py")
    models = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(models)
    accelerator = Accelerator(cpu=True)
    torch.save(compute(Ranks(accelerator), models), f"{sys.argv[1]}.{accelerator.process_index}of{accelerator.num_processes}")
    accelerator.end_training()
