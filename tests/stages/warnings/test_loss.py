"""A loss above that of a model which knows nothing is told; by hand."""

import pytest

from stages.warnings.loss import find_ignorance


@pytest.mark.parametrize(
    ("loss", "of_chance", "told"),
    [
        (6.2, 5.8319, "the held-out loss 6.2 is above 5.83, "),
        (5.83012, 5.83009, "the held-out loss 5.83012 is above 5.83009, "),
        (0.1 + 0.2, 0.3, "the held-out loss 0.30000000000000004 is above 0.29999999999999999, "),
    ],
)
def test_a_loss_above_that_of_a_model_which_knows_nothing_is_told_by_as_many_digits_as_tell_the_two_apart(loss, of_chance, told):
    message = find_ignorance(loss, of_chance, what="held-out loss", model="reward model", remedy="lower rm.epochs")
    assert message == told + "that of a reward model which knows nothing; lower rm.epochs"


@pytest.mark.parametrize("loss", [0.1, 0.3, float("nan")])
def test_one_that_is_not_above_is_not(loss):
    assert find_ignorance(loss, 0.3, what="loss", model="model", remedy="") is None
