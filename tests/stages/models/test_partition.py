"""Models in pieces hold no more than their pieces and one weight while they are loaded, whatever the allocator keeps."""

import pytest

from tests.bench.load_memory import measure


@pytest.mark.slow
def test_the_private_memory_of_a_process_grows_by_its_half_and_one_weight_while_it_loads():
    for found in measure("big"):
        half_mb, largest_mb = (4e-6 * numbers for numbers in (found["weights"] / 2, found["largest"]))
        assert half_mb < found["peak_mb"] < half_mb + 1.5 * largest_mb
