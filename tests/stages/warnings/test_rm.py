"""What a reward model's accuracy warns of."""

import pytest

from stages.result import Interval
from stages.warnings.rm import find_chance, find_too_good


@pytest.mark.parametrize(
    ("accuracy", "interval", "chance", "too_good"),
    [
        (0.81, Interval(low=0.80, high=0.82, n=1000), False, False),
        (0.55, Interval(low=0.49, high=0.61, n=200), True, False),
        (0.55, Interval(low=0.51, high=0.59, n=800), False, False),
        (0.30, Interval(low=0.20, high=0.40, n=90), True, False),
        (0.98, Interval(low=0.96, high=0.99, n=400), False, True),
        (1.0, Interval(low=0.68, high=1.0, n=8), False, False),  # eight of eight show little
        (1.0, None, False, False),
    ],
)
def test_accuracy_warns_by_its_interval(accuracy, interval, chance, too_good):
    assert bool(find_chance(accuracy, interval)) == chance
    assert bool(find_too_good(accuracy, interval)) == too_good


def test_ranks_the_wrong_way_round_are_told():
    assert "see that rank 1 is the best answer" in find_chance(0.30, Interval(low=0.20, high=0.40, n=90))
