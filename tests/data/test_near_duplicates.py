"""What counts as the same answer said again."""

import pytest

from data.near_duplicates import measure_overlap


@pytest.mark.parametrize(
    ("one", "other", "overlap"),
    [
        ("It is on its way.", "it is on its way", 1.0),
        ("", "...", 1.0),
        ("Yes.", "No.", 0.0),
        # pairs: ^a ab bc c$ and ^a ab bd d$: two of six
        ("a b c", "a b d", 2 / 6),
        # ^a ab b$ and ^a ab ba ab b$: three of five, as each counts as often as it occurs
        ("a b", "a b a b", 3 / 5),
    ],
)
def test_the_share_of_neighbouring_words_is_as_by_hand(one, other, overlap):
    assert measure_overlap(one, other) == measure_overlap(other, one) == pytest.approx(overlap)


def test_one_other_day_in_a_whole_answer_is_no_duplicate():
    answer = "Hi Amir! Your silver wallet is packed and is due on {}. You can follow it with the link in your email. Have a nice day!"
    assert measure_overlap(answer.format("Monday"), answer.format("Friday")) == pytest.approx(25 / 29)
