"""Prompts without replacement, shards, the cursor; seeds."""

import itertools

import pytest

from stages.ppo.sampler import PromptSampler
from stages.process.seeds import derive_seed


def test_each_pass_draws_every_prompt_once_in_a_fresh_order():
    sampler = PromptSampler(10, seed=0)
    drawn = [index for _ in range(10) for index in sampler.draw(3)]
    passes = [drawn[start : start + 10] for start in (0, 10, 20)]
    assert all(sorted(one) == list(range(10)) for one in passes)
    assert len({tuple(one) for one in passes}) == 3


def test_ranks_share_out_what_one_rank_would_draw():
    alone, ranks = PromptSampler(7, seed=1), [PromptSampler(7, seed=1) for _ in range(2)]
    for _ in range(4):
        shards = [sampler.draw(6, rank, 2) for rank, sampler in enumerate(ranks)]
        assert sorted(itertools.chain(*shards)) == sorted(alone.draw(6))
        assert [len(shard) for shard in shards] == [3, 3]


def test_a_cursor_is_all_that_a_resumed_sampler_needs():
    straight, resumed = PromptSampler(5, seed=2), PromptSampler(5, seed=2)
    straight.draw(8)
    resumed.cursor = straight.cursor
    assert straight.draw(9) == resumed.draw(9)


def test_a_batch_may_be_larger_than_the_set_of_prompts():
    assert sorted(PromptSampler(2, seed=0).draw(6)) == [0, 0, 0, 1, 1, 1]


def test_no_prompt_is_refused():
    with pytest.raises(ValueError, match="0 prompts"):
        PromptSampler(0, seed=0)


def test_seeds_differ_by_seed_iteration_and_rank_and_do_not_meet_by_addition():
    seeds = {derive_seed(seed, iteration, rank) for seed in range(5) for iteration in range(5) for rank in range(5)}
    assert len(seeds) == 125
    assert all(0 <= seed < 2**63 for seed in seeds)
