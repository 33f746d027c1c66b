"""PPO on a pretend GPU (tests/pretend_gpu.py): every branch for a GPU runs, makes what the CPU makes, and seldom makes the CPU wait."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from torch.profiler import profile

from stages.ppo.budget import TokenBudget
from stages.ppo.learner import TorchLearner
from stages.ppo.state import collect_generator_states, restore_generator_states
from stages.ppo.update import Updater
from stages.ppo.zero import ZeroLearner
from stages.process.ranks import Ranks
from tests.pretend_gpu import CUDA, pretend_gpu


def iterate(make_trainer, ranks, **settings):
    """Two iterations: (trained weights on the CPU, rows of figures)."""
    trainer = make_trainer(ranks=ranks, **settings)
    rows = [trainer.step() for _ in range(2)]
    modules = (trainer.actor.module, trainer.critic.module)
    return [weight.detach().cpu().clone() for module in modules for weight in module.parameters()], rows, trainer


@pytest.mark.slow
def test_iterations_on_a_gpu_leave_the_weights_of_the_cpu(make_trainer, ranks, tiny):
    settings = {
        "ppo_epochs": 1,
        "score_clip": 5.0,
        "whiten_rewards": True,
        "scale_scores": True,
        "ema_decay": 0.9,
        "early_stop_kl": 1.0,
        "ptx_coef": 0.1,
    }
    expected, _, _ = iterate(make_trainer, ranks, demonstrations=tiny.demonstrations(), **settings)
    with pretend_gpu():
        found, rows, trainer = iterate(make_trainer, Ranks(Accelerator()), demonstrations=tiny.demonstrations(), **settings)
        assert all(weight.is_cuda for weight in trainer.policy.parameters())
    assert rows[0]["objective/kl"] == 0.0 and rows[1]["val/ratio_start_deviation"] < 1e-5
    for ours, weight in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, weight, atol=2e-5, rtol=1e-4)


@pytest.mark.slow
def test_in_bfloat16_on_a_gpu_ratio_and_kl_start_as_they_must(make_trainer):
    with pretend_gpu():
        _, rows, _ = iterate(make_trainer, Ranks(Accelerator()), bfloat16=True)
    assert rows[0]["objective/kl"] == 0.0
    assert rows[0]["rollout/logprob_gap"] < 0.05
    assert rows[0]["val/ratio_start_deviation"] < 0.05  # rounding of bfloat16 in other micro-batches


def test_a_micro_batch_of_an_update_never_makes_the_cpu_wait_for_the_gpu(gpu, tiny):
    model = tiny.both().to("cuda")
    ranks = Ranks(Accelerator())
    updater = Updater(ranks, *tiny.learners(model, ranks), tiny.rules(), TokenBudget(20))
    experience = tiny.experience()
    experience = type(experience)(**{name: tensor.to("cuda") for name, tensor in vars(experience).items() if name != "lengths_2B"})
    waits = {}
    for max_tokens in (1000, 14):
        gpu.syncs.clear()
        updater.accumulate_gradients(experience, max_tokens)
        waits[len(experience.split(max_tokens))] = gpu.num_syncs
    assert waits == {1: 0, 6: 0}, gpu.syncs


def test_nor_does_its_backward_pass_which_the_pretend_gpu_does_not_see(monkeypatch, ranks, tiny):
    names, plain = set(), TorchLearner.backward

    def backward(learner, loss):
        with profile() as seen:
            plain(learner, loss)
        names.update(event.name for event in seen.events())

    monkeypatch.setattr(TorchLearner, "backward", backward)
    updater = Updater(ranks, *tiny.learners(tiny.both(), ranks), tiny.rules(), TokenBudget(20))
    updater.accumulate_gradients(tiny.experience(), 14)
    assert "aten::mm" in names  # how many numbers a GPU selects, it must be asked
    assert not names & {"aten::masked_select", "aten::nonzero", "aten::item", "aten::_local_scalar_dense", "aten::is_nonzero"}


@pytest.mark.parametrize("norm", [torch.tensor(0.7), 0.7, -1.0], ids=["offloaded", "a number", "an overflow"])
def test_a_critic_warms_up_while_its_optimizer_lies_on_the_cpu(gpu, ranks, tiny, norm):
    module = tiny.both().critic.to("cuda")
    learner = ZeroLearner.__new__(ZeroLearner)  # DeepSpeed has no GPU to be initialised on
    learner._engine = SimpleNamespace(step=lambda: None, get_global_grad_norm=lambda: norm, device=CUDA)
    learner.module = module
    found = learner.step()
    assert found.is_cuda and float(found) == pytest.approx(float(norm))
    torch.stack([torch.zeros((), device="cuda"), found])  # as the updater puts the policy's and the critic's side by side


def test_generators_that_a_gpu_left_are_restored_where_there_are_other_gpus_or_none(monkeypatch):
    with pretend_gpu(8):
        states = collect_generator_states()
    assert len(states["cuda"]) == 1  # that of the GPU that the process computes on, of the eight that it sees
    restored = []
    expected = torch.rand(3)
    restore_generator_states(states)
    assert torch.equal(torch.rand(3), expected)
    with pretend_gpu():
        monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state: restored.append(state))
        restore_generator_states(states)
    assert restored == states["cuda"] and collect_generator_states()["cuda"] == []
