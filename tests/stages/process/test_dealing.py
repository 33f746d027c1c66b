"""Items of unequal size are dealt out: so many to each, about as much to each."""

import itertools

import numpy as np
import pytest

from stages.process.dealing import deal


def test_the_dealing_by_hand():
    # 8 | 7, 6 to the second, 5 fills the first up with 13, so that 4 comes to 7 and 6: 17. To swap 7 and 5 leaves 15 and 15.
    assert [share.tolist() for share in deal(np.array([4, 5, 6, 7, 8]), [2, 3])] == [[3, 4], [0, 1, 2]]


def test_few_items_are_dealt_almost_as_well_as_by_trying_all_ways():
    generator = np.random.default_rng(0)
    for _ in range(50):
        sizes = generator.integers(1, 100, 8)
        first, second = (int(sizes[share].sum()) for share in deal(sizes, [4, 4]))
        best = min(abs(int(sizes.sum()) - 2 * int(sizes[list(four)].sum())) for four in itertools.combinations(range(8), 4))
        assert abs(first - second) <= best + 10, sizes


@pytest.mark.parametrize("counts", [[0], [5], [3, 0, 2], [1] * 7, [4, 4, 4, 1]])
def test_every_item_is_dealt_once_and_each_share_has_its_number(counts):
    sizes = np.random.default_rng(1).integers(1, 1000, sum(counts))
    shares = deal(sizes, counts)
    assert [len(share) for share in shares] == counts
    assert sorted(np.concatenate(shares).tolist()) == list(range(sum(counts)))
