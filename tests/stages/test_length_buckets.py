"""Length buckets leave nothing out, save padding, and repeat for the same seed and epoch."""

import itertools
import random

import pytest

from stages.length_buckets import LengthBucketSampler

LENGTHS = [random.Random(1).choice([5, 9, 30, 60, 61, 80]) + index % 7 for index in range(1003)]


def padding(order, batch_size):
    batches = [[LENGTHS[i] for i in order[at : at + batch_size]] for at in range(0, len(order), batch_size)]
    return sum(max(batch) * len(batch) - sum(batch) for batch in batches)


def test_every_item_comes_once_an_epoch():
    assert sorted(LengthBucketSampler(LENGTHS, 8, seed=3)) == list(range(len(LENGTHS)))


@pytest.mark.parametrize("count", [1, 7, 8, 9, 128, 129])
def test_short_data_is_complete_too(count):
    assert sorted(LengthBucketSampler(LENGTHS[:count], 8, seed=3)) == list(range(count))


def test_padding_is_a_fraction_of_a_shuffles():
    shuffled = list(range(len(LENGTHS)))
    random.Random(0).shuffle(shuffled)
    assert padding(list(LengthBucketSampler(LENGTHS, 8, seed=3)), 8) < 0.25 * padding(shuffled, 8)


def test_order_follows_seed_and_epoch():
    sampler = LengthBucketSampler(LENGTHS, 8, seed=3)
    first = list(sampler)
    assert list(sampler) == first and list(LengthBucketSampler(LENGTHS, 8, seed=4)) != first
    sampler.set_epoch(1)
    second = list(sampler)
    sampler.set_epoch(0)
    assert second != first and list(sampler) == first


def test_batches_do_not_come_sorted_by_length():
    order = list(LengthBucketSampler(LENGTHS, 8, seed=3))
    means = [sum(LENGTHS[i] for i in order[at : at + 8]) for at in range(0, 1000, 8)]
    rises = sum(b > a for a, b in itertools.pairwise(means))
    assert 0.3 < rises / len(means) < 0.7
