"""How much of a machine others take while a plan measures it."""

import os
import subprocess
import sys

from pytest import approx, mark

from stages.tracing.crowding import Load, count_crowded, read_load

STAT = "cpu  300 100 200 9000 50 10 20 30 0 0\ncpu0 150 50 100 4500 25 5 10 15 0 0\ncpu1 150 50 100 4500 25 5 10 15 0 0\nintr 1 2\n"


def test_all_that_is_not_idle_is_busy(tmp_path):
    path = tmp_path / "stat"
    path.write_text(STAT)
    load = read_load(path)
    assert load.busy_s == approx((300 + 100 + 200 + 10 + 20 + 30) / os.sysconf("SC_CLK_TCK")) and load.cores == 2


@mark.parametrize(
    ("busy_s", "own_s", "cores", "wanted", "crowded"),
    [
        (20, 20, 2, 2, 0),  # ten seconds of both cores, all its own
        (20, 12, 2, 2, 0.8),  # eight of them others'
        (20, 12, 2, 1, 0),  # others have the second core
        (20, 5, 2, 1, 0.5),  # and half of the first
        (300, 20, 64, 2, 0),  # others have 28 of 64 cores
        (0, 20, 0, 2, 0),  # a system that does not tell
    ],
)
def test_others_crowd_what_measures_where_too_few_cores_are_left(busy_s, own_s, cores, wanted, crowded):
    before, after = Load(5, 100, 7, cores), Load(15, 100 + busy_s, 7 + own_s, cores)
    assert count_crowded(before, after, wanted) == approx(crowded)


def test_what_a_child_computed_that_has_ended_is_its_own():
    before = read_load()
    subprocess.run([sys.executable, "-S", "-c", "import time\nwhile time.process_time() < 0.3: pass"], check=True)
    assert read_load().own_s - before.own_s > 0.25


def test_a_system_without_proc_says_nothing(tmp_path):
    load = read_load(tmp_path / "none")
    assert (load.busy_s, load.cores) == (0, 0) and count_crowded(load, load, 2) == 0
