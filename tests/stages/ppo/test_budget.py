"""Out of memory: once, micro-batches of half the tokens, with the same gradients; then the failure itself."""

import pytest
import torch

from stages.ppo.budget import TokenBudget
from stages.ppo.metrics import describe_update
from stages.ppo.update import Updater
from stages.process.errors import is_out_of_memory

CPU_FAILURE = "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
FAILURES = [torch.OutOfMemoryError("CUDA out of memory."), MemoryError(), RuntimeError(CPU_FAILURE)]


def fail_at(module, calls, error):
    """Let the given forwards of a module fail, counted from 1 and the failed ones included."""
    made = []

    def count(*_):
        made.append(1)
        if len(made) in calls:
            raise error

    module.register_forward_pre_hook(count)


def run_update(tiny, ranks, budget, calls=(), error=None):
    model = tiny.both()
    fail_at(model.critic, calls, error)  # once in a micro-batch, with the gradients of the policy already there
    learners = tiny.learners(model, ranks, max_grad_norm=1.0)
    stats = Updater(ranks, *learners, tiny.rules(), budget).update(tiny.experience(), 0)
    return stats, dict(model.named_parameters())


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
def test_a_failure_in_the_second_micro_batch_leaves_the_update_as_half_the_tokens_from_the_start_would(tiny, ranks, error):
    notes = []
    budget = TokenBudget(24, note=notes.append)
    stats, found = run_update(tiny, ranks, budget, calls={2}, error=error)
    expected_stats, expected = run_update(tiny, ranks, TokenBudget(12))
    assert stats == expected_stats and stats.optimizer_steps == 4
    assert all(torch.equal(parameter, expected[name]) for name, parameter in found.items())
    (note,) = notes
    assert "at most 12 tokens instead of 24" in note and "set ppo.max_tokens_per_microbatch: 12" in note


def test_a_failure_later_leaves_the_update_as_no_failure_would(tiny, ranks):
    stats, found = run_update(tiny, ranks, TokenBudget(24), calls={6}, error=FAILURES[0])
    expected_stats, expected = run_update(tiny, ranks, TokenBudget(24))
    assert describe_update(stats) == pytest.approx(describe_update(expected_stats), rel=1e-4, abs=1e-6)
    for name, parameter in found.items():
        torch.testing.assert_close(parameter, expected[name], atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.parametrize(
    ("calls", "may_halve", "error"),
    [({2, 3}, True, FAILURES[0]), ({2, 9}, True, FAILURES[0]), ({2}, False, FAILURES[0]), ({2}, True, RuntimeError("odd"))],
    ids=["at once again", "later again", "several ranks", "another error"],
)
def test_what_halving_cannot_mend_is_raised(tiny, ranks, calls, may_halve, error):
    with pytest.raises(type(error), match=str(error)):
        run_update(tiny, ranks, TokenBudget(24, may_halve=may_halve), calls=calls, error=error)


def test_a_real_failure_of_the_cpus_allocator_is_recognised():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize(
    ("message", "is_it"),
    [
        ("CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation' in the documentation", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("NCCL error: unhandled cuda error. Last error:\nCuda failure 2 'out of memory'", True),
        ("CUDA error: an illegal memory access was encountered", False),
    ],
)
def test_a_gpu_whose_memory_others_ask_for_is_recognised(message, is_it):
    assert is_out_of_memory(torch.AcceleratorError(message)) == is_it


def test_a_limit_that_the_batch_did_not_reach_is_halved_from_what_the_batch_has(tiny):
    rollout, sizes = tiny.rollout(), []
    num_tokens = int(rollout.prompt_mask_BP.sum() + rollout.response_mask_BR.sum())

    def work(max_tokens):
        sizes.append(max_tokens)
        if len(sizes) == 1:
            raise MemoryError

    TokenBudget(8192).attempt(rollout, work)
    assert sizes == [8192, num_tokens // 2]


def test_scoring_goes_on_in_smaller_micro_batches_for_the_rest_of_the_run_and_of_a_resumed_one(make_trainer, tmp_path):
    notes = []
    trainer = make_trainer(max_tokens_per_microbatch=64, note=notes.append)
    fail_at(trainer.scorer.reward_model.base_model, {1}, FAILURES[0])
    plain = make_trainer(max_tokens_per_microbatch=64)
    metrics, expected = trainer.step(), plain.step()
    assert len(notes) == 1 and trainer.budget.max_tokens == 32
    for key, value in expected.items():
        assert key.startswith("time/") or metrics[key] == pytest.approx(value, rel=1e-3, abs=1e-4), key
    trainer.save(tmp_path, {})
    resumed = make_trainer(max_tokens_per_microbatch=64)
    resumed.load(tmp_path)
    assert (resumed.budget.max_tokens, resumed.budget.may_halve) == (32, False)


def test_reference_and_policy_are_evaluated_anew_together_so_that_the_first_kl_is_zero(make_trainer):
    trainer = make_trainer(max_tokens_per_microbatch=64)
    fail_at(trainer.reference.policy.base_model, {1}, FAILURES[0])
    assert trainer.step()["objective/kl"] == 0.0
    assert trainer.budget.max_tokens == 32
