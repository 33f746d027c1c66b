"""How often the records of a source are seen in an epoch of the reward model."""

from collections import Counter

import numpy as np
import pytest

from data.token_file import TokenRows
from data.tokens import EncodedComparison
from stages.rm import weigh_sources

SOURCES = ["base"] * 400 + ["rankings@v1/mail"] * 300 + ["rankings@v2"] * 300


def read(file, row):
    return EncodedComparison([row], [[1], [2]], (1, 2), SOURCES[row])


@pytest.fixture
def rows():
    return TokenRows(None, np.arange(len(SOURCES)), read)


def count(seen):
    return Counter(item.prompt_ids[0] for item in seen)


def test_where_nothing_weighs_otherwise_nothing_is_touched(rows):
    assert weigh_sources(rows, {}, 5) is rows and weigh_sources(rows, {"base": 1.0, "rankings@v1": 1.0}, 5) is rows


def test_a_weight_is_how_often_each_record_of_its_source_is_seen(rows):
    seen = count(weigh_sources(rows, {"base": 0.5, "rankings@v1": 2.0}, 5))
    assert {seen[row] for row in range(400, 700)} == {2} and {seen[row] for row in range(700, 1000)} == {1}
    half = [seen[row] for row in range(400)]
    assert set(half) == {0, 1} and 160 < sum(half) < 240
    assert seen == count(weigh_sources(rows, {"base": 0.5, "rankings@v1": 2.0}, 5))
    assert seen != count(weigh_sources(rows, {"base": 0.5, "rankings@v1": 2.0}, 6))


def test_copies_of_a_record_stand_beside_each_other_in_the_order_of_the_file_until_the_trainer_shuffles(rows):
    seen = [item.prompt_ids[0] for item in weigh_sources(rows, {"rankings@v2": 1.5}, 5)]
    assert seen == sorted(seen) and len(seen) > 1100
