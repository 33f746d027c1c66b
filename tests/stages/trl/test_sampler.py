"""What each process gets of a step of SFT and RM: the same records as before, about as many tokens as the others."""

import numpy as np
import pytest
from accelerate.data_loader import BatchSamplerShard, SeedableRandomSampler
from torch.utils.data import BatchSampler

from stages.trl.batches import count_unrepeated
from stages.trl.sampler import DealtSampler

_DRAW = np.random.default_rng(0)


def draw_lengths(count, median, least, most):
    """As lengths of prompts and answers are: most are short, a few many times as long."""
    return np.clip(_DRAW.lognormal(np.log(median), 0.9, count), least, most).astype(np.int64)


def draw_comparisons(count):
    return draw_lengths(count, 150, 16, 1024) + sum(draw_lengths(count, 120, 8, 512) for _ in range(4))


def hand_out(sizes, micro_batch_size, accumulation_steps, num_ranks, *, dealt):
    """Each rank's micro-batches, by accelerate's own sharding."""
    handed = []
    for rank in range(num_ranks):
        drawn = SeedableRandomSampler(range(len(sizes)), data_seed=3)
        sampler = DealtSampler(drawn, sizes, micro_batch_size, accumulation_steps, num_ranks) if dealt else drawn
        handed.append(list(BatchSamplerShard(BatchSampler(sampler, micro_batch_size, drop_last=False), num_ranks, rank)))
    return handed


@pytest.mark.parametrize("lengths", [draw_lengths(1024, 240, 16, 2048), draw_comparisons(1024)], ids=["sft", "rm"])
@pytest.mark.parametrize(("micro", "accumulated", "ranks"), [(16, 1, 2), (4, 4, 2), (4, 4, 8), (8, 2, 16)])
def test_in_each_step_all_ranks_get_as_many_tokens_within_five_percent(lengths, micro, accumulated, ranks):
    spreads = {}
    for dealt in (False, True):
        tokens_WM = np.array([[lengths[batch].sum() for batch in own] for own in hand_out(lengths, micro, accumulated, ranks, dealt=dealt)])
        tokens_WS = tokens_WM.reshape(ranks, -1, accumulated).sum(axis=2)
        spreads[dealt] = np.ptp(tokens_WS, axis=0) / tokens_WS.mean(axis=0)
    assert spreads[True].max() <= 0.05 and np.median(spreads[False]) > 0.05


def test_micro_batches_of_a_step_are_alike_too():
    lengths = draw_comparisons(1024)
    tokens_WM = np.array([[lengths[batch].sum() for batch in own] for own in hand_out(lengths, 8, 4, 8, dealt=True)])
    assert (np.ptp(tokens_WM, axis=0) / tokens_WM.mean(axis=0)).mean() <= 0.05


@pytest.mark.parametrize("records", [1, 5, 24, 29, 47, 64])
def test_a_step_holds_the_records_that_were_drawn_for_it_each_once_in_odd_last_steps_too(records):
    sizes, (micro, accumulated, ranks) = draw_lengths(records, 100, 4, 1000), (2, 3, 4)
    steps = {}
    for dealt in (False, True):
        handed = hand_out(sizes, micro, accumulated, ranks, dealt=dealt)
        for rank, own in enumerate(handed):
            own[-1] = own[-1][: count_unrepeated(records, micro, rank, ranks)]
        in_step = [own[first : first + accumulated] for own in handed for first in range(0, len(own), accumulated)]
        per_rank = len(in_step) // ranks
        steps[dealt] = [
            sorted(record for rank in range(ranks) for batch in in_step[rank * per_rank + step] for record in batch)
            for step in range(per_rank)
        ]
    assert steps[True] == steps[False]
    assert sorted(record for step in steps[True] for record in step) == list(range(records))


def test_an_epoch_is_drawn_as_it_would_be():
    sampler = DealtSampler(SeedableRandomSampler(range(40), data_seed=3), draw_lengths(40, 100, 4, 1000), 2, 2, 2)
    first, second = list(sampler), list(sampler)
    sampler.set_epoch(0)
    assert len(sampler) == 40 and first != second and list(sampler) == first
