"""What each rank gets of the work: equally many responses, about equally many tokens, equally many micro-batches."""

import pytest
import torch

from stages.ppo.experience import deal


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_every_response_is_dealt_once_equally_many_to_each_and_tokens_are_balanced(world_size):
    lengths = torch.randint(10, 1000, (200,), generator=torch.Generator().manual_seed(0))
    rows = torch.randperm(200, generator=torch.Generator().manual_seed(1))[:64]
    shares = [deal(rows, lengths, rank, world_size) for rank in range(world_size)]
    assert sorted(torch.cat(shares).tolist()) == sorted(rows.tolist())
    assert {len(share) for share in shares} == {64 // world_size}
    tokens = [int(lengths[share].sum()) for share in shares]
    assert max(tokens) - min(tokens) <= 0.06 * sum(tokens) / world_size


def test_the_dealing_by_hand():
    lengths = torch.tensor([1, 9, 5, 7, 3, 8])  # sorted: rows 0 4 | 2 3 | 5 1; the second round goes the other way
    assert deal(torch.arange(6), lengths, 0, 2).tolist() == [0, 3, 5]
    assert deal(torch.arange(6), lengths, 1, 2).tolist() == [4, 2, 1]


@pytest.mark.parametrize("at_least", [1, 3, 8])
def test_a_batch_can_be_split_into_more_micro_batches_than_its_tokens_need(tiny, at_least):
    rollout = tiny.rollout()
    parts = rollout.split(1000, at_least=at_least)
    assert len(parts) == at_least and all(len(part) for part in parts)
    assert sorted(torch.cat(parts).tolist()) == list(range(8))
