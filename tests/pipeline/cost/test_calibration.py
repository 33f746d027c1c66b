"""What past runs say of the next one."""

from pytest import approx

from pipeline.cost.calibration import calibrate


def test_one_run_corrects_and_says_little_of_how_sure_that_is():
    found = calibrate([1.4])
    assert (found.factor, found.spread, found.runs) == (1.4, 1.25, 1)
    assert calibrate([]) is None


def test_a_run_on_a_busy_machine_does_not_move_the_factor():
    found = calibrate([1.0, 1.02, 0.98, 1.01, 6.0])
    assert found.factor == 1.01
    assert found.spread == 1.10  # no less, however many agree


def test_runs_that_differ_widen_the_spread():
    found = calibrate([0.5, 1.0, 2.0])
    assert found.factor == 1.0
    assert found.spread == approx(2.0 ** (2 * 1.4826))
