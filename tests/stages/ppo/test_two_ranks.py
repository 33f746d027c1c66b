"""Two ranks, each with half of the responses and unequal numbers of tokens, equal one rank with all of them."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

DRIVER = Path(__file__).with_name("two_ranks_driver.py")
ROOT = DRIVER.parents[3]


@pytest.fixture(scope="module")
def results(tmp_path_factory, warm_start):
    """(one rank, [first of two, second of two])."""
    base = tmp_path_factory.mktemp("ranks") / "result"
    for count in (1, 2):
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count), str(DRIVER), str(base)]
        found = subprocess.run(launcher, cwd=ROOT, env=warm_start(), capture_output=True, text=True, timeout=240)
        assert found.returncode == 0, found.stderr[-3000:]
    one = torch.load(f"{base}.0of1")
    return one, [torch.load(f"{base}.{rank}of2") for rank in range(2)]


@pytest.mark.slow
def test_whitening_and_moments_are_over_the_tokens_of_both_ranks(results):
    one, two = results
    for name in ("whitened", "scaled"):
        together = torch.cat([rank["figures"][name] for rank in two]).sort().values  # rank 1 has every second response
        torch.testing.assert_close(together, one["figures"][name].sort().values)
    for rank in two:
        torch.testing.assert_close(rank["figures"]["explained"], one["figures"]["explained"])
        torch.testing.assert_close(rank["figures"]["moments"], one["figures"]["moments"])
        assert rank["figures"]["largest"] == 1.0


@pytest.mark.slow
def test_every_rank_gathers_what_one_rank_alone_would_have(results):
    one, two = results
    for rank in two:
        for name, tensor in one["gathered"].items():
            assert torch.equal(rank["gathered"][name], tensor), name


@pytest.mark.slow
def test_gradients_are_those_of_the_mean_over_the_tokens_of_both_ranks(results):
    one, two = results
    for rank in two:
        for name, gradient in one["gradients"].items():
            torch.testing.assert_close(rank["gradients"][name], gradient, atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.slow
def test_the_ranks_add_up_their_gradients_once_in_a_minibatch_of_any_number_of_micro_batches(results):
    _, two = results
    for rank in two:
        (many, meetings), (one, meetings_of_one) = rank["meetings"][1], rank["meetings"][1000]
        assert (many, one) == (4, 1)
        assert meetings == meetings_of_one == 3  # the tokens of all ranks, the policy's gradients, the critic's


@pytest.mark.slow
def test_demonstrations_that_two_ranks_share_leave_the_weights_of_one_rank_with_all(results):
    one, two = results
    for name, weight in one["mixed"]["weights"].items():
        assert torch.equal(two[0]["mixed"]["weights"][name], two[1]["mixed"]["weights"][name]), name
        torch.testing.assert_close(two[0]["mixed"]["weights"][name], weight, atol=1e-5, rtol=1e-5, msg=name)
    assert two[0]["mixed"]["losses"] == two[1]["mixed"]["losses"] == pytest.approx(one["mixed"]["losses"], rel=1e-4)


@pytest.mark.slow
def test_in_a_critic_warm_up_the_policy_stands_still_on_both_ranks(results):
    one, two = results
    for rank in two:
        for name, weight in rank["weights"].items():
            assert torch.equal(rank["warmed_up"][name], weight) == name.startswith("actor."), name
            torch.testing.assert_close(rank["warmed_up"][name], one["warmed_up"][name], atol=1e-5, rtol=1e-5, msg=name)


@pytest.mark.slow
def test_an_update_leaves_both_ranks_with_the_weights_and_figures_of_one(results):
    one, two = results
    for name, weight in one["weights"].items():
        assert torch.equal(two[0]["weights"][name], two[1]["weights"][name]), name
        torch.testing.assert_close(two[0]["weights"][name], weight, atol=1e-5, rtol=1e-5, msg=name)
    assert two[0]["stats"] == two[1]["stats"]
    assert two[0]["stats"] == pytest.approx(one["stats"], rel=1e-4, abs=1e-6)
