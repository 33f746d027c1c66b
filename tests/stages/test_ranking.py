"""The K-way ranking loss against numbers worked by hand, a slow loop, and TRL's own pairwise loss."""

import itertools
import math

import pytest
import torch

from stages.ranking import calibration_error, correlation, grade_margins, make_pairs, pair_accuracy, ranking_loss


def slow_loss(scores, ranks, prompts):
    """Loop over prompts and pairs, in plain floats."""
    per_prompt = []
    for prompt in sorted(set(prompts)):
        rows = [i for i, owner in enumerate(prompts) if owner == prompt]
        terms = []
        for i, j in itertools.permutations(rows, 2):
            if ranks[i] < ranks[j]:
                terms.append(math.log(1 + math.exp(-(scores[i] - scores[j]))))
        if terms:
            per_prompt.append(sum(terms) / len(terms))
    return sum(per_prompt) / len(per_prompt)


def loss_of(scores, ranks, prompts):
    return ranking_loss(torch.tensor(scores), make_pairs(torch.tensor(ranks), torch.tensor(prompts)))


def test_two_answers_give_the_pairwise_loss_worked_by_hand():
    # -log sigmoid(1.5 - 0.5) = log(1 + e^-1) = 0.31326
    assert loss_of([1.5, 0.5], [1, 2], [0, 0]).item() == pytest.approx(0.313262, abs=1e-6)


def test_three_answers_give_the_mean_of_their_three_pairs_worked_by_hand():
    # scores 2, 0, 1 with ranks 1, 2, 3: margins 2, 1, -1 -> 0.126928, 0.313262, 1.313262; mean 0.584484
    assert loss_of([2.0, 0.0, 1.0], [1, 2, 3], [0, 0, 0]).item() == pytest.approx(0.584484, abs=1e-6)


def test_grades_ask_for_a_margin_worked_by_hand():
    # grades 7 and 4, better first: m = 3/6; scores 1.5 and 0.5: -log sigmoid(1 - 0.5) = log(1 + e^-0.5) = 0.474077
    pairs = make_pairs(torch.tensor([1, 2]), torch.tensor([0, 0]))
    required = grade_margins(torch.tensor([7.0, 4.0]), pairs)
    assert required.tolist() == [0.5]
    assert ranking_loss(torch.tensor([1.5, 0.5]), pairs, required).item() == pytest.approx(0.474077, abs=1e-6)
    # Without a grade, or with grades that contradict the ranks, there is none.
    for grades in ([7.0, math.nan], [math.nan, 4.0], [4.0, 7.0]):
        assert grade_margins(torch.tensor(grades), pairs).tolist() == [0.0]


def test_ties_make_no_pair():
    # ranks 1, 2, 2: only 2 pairs: margins 2 and 1 -> (0.126928 + 0.313262) / 2
    assert loss_of([2.0, 0.0, 1.0], [1, 2, 2], [0, 0, 0]).item() == pytest.approx((0.126928 + 0.313262) / 2, abs=1e-6)


def test_a_batch_where_all_answers_tie_has_zero_loss_and_zero_gradient():
    scores = torch.tensor([1.0, 2.0], requires_grad=True)
    loss = ranking_loss(scores, make_pairs(torch.tensor([1, 1]), torch.tensor([0, 0])))
    loss.backward()
    assert loss.item() == 0.0 and scores.grad is not None and scores.grad.abs().sum() == 0


@pytest.mark.parametrize("seed", range(5))
def test_prompts_with_unequal_numbers_of_answers_agree_with_a_slow_loop(seed):
    generator = torch.Generator().manual_seed(seed)
    sizes = [2, 9, 4, 3]
    prompts = [index for index, size in enumerate(sizes) for _ in range(size)]
    ranks = torch.randint(1, 4, (len(prompts),), generator=generator).tolist()
    scores = torch.randn(len(prompts), generator=generator, dtype=torch.float64).tolist()
    found = loss_of([float(x) for x in scores], ranks, prompts).item()
    assert found == pytest.approx(slow_loss(scores, ranks, prompts), rel=1e-5)


def test_each_prompt_weighs_alike_however_many_answers_it_has():
    two = loss_of([0.3, -0.2], [1, 2], [0, 0])
    four = loss_of([0.1, 0.9, -1.0, 0.4], [1, 2, 3, 4], [0, 0, 0, 0])
    both = loss_of([0.3, -0.2, 0.1, 0.9, -1.0, 0.4], [1, 2, 1, 2, 3, 4], [0, 0, 1, 1, 1, 1])
    assert both.item() == pytest.approx((two.item() + four.item()) / 2, abs=1e-6)


def test_order_of_answers_does_not_matter():
    base = loss_of([2.0, 0.0, 1.0, -1.0], [1, 2, 3, 4], [0, 0, 0, 0])
    shuffled = loss_of([1.0, -1.0, 2.0, 0.0], [3, 4, 1, 2], [0, 0, 0, 0])
    assert base.item() == pytest.approx(shuffled.item(), abs=1e-7)


def test_pair_accuracy_counts_equal_scores_as_half():
    pairs = make_pairs(torch.tensor([1, 2, 3]), torch.tensor([0, 0, 0]))
    assert sorted(pair_accuracy(torch.tensor([1.0, 1.0, 2.0]), pairs).tolist()) == [0.0, 0.0, 0.5]


def test_rank_distance_is_the_difference_of_ranks():
    pairs = make_pairs(torch.tensor([1, 2, 4]), torch.tensor([0, 0, 0]))
    assert sorted(pairs.distance_Q.tolist()) == [1, 2, 3]


def test_calibration_error_is_zero_for_a_model_that_is_right_as_often_as_it_says():
    margin = math.log(3.0)  # sigmoid = 0.75
    scores, ranks, prompts = [], [], []
    for index in range(4):
        right = index < 3
        scores += [margin, 0.0]
        ranks += [1, 2] if right else [2, 1]
        prompts += [index, index]
    error = calibration_error(torch.tensor(scores), make_pairs(torch.tensor(ranks), torch.tensor(prompts)))
    assert error == pytest.approx(0.0, abs=1e-6)


def test_calibration_error_of_a_sure_but_always_wrong_model_is_its_confidence():
    scores = torch.tensor([0.0, 4.0])
    error = calibration_error(scores, make_pairs(torch.tensor([1, 2]), torch.tensor([0, 0])))
    assert error == pytest.approx(1 / (1 + math.exp(-4.0)), abs=1e-6)


def test_a_model_that_knows_nothing_is_calibrated_since_equal_scores_are_right_in_half_of_the_cases():
    pairs = make_pairs(torch.tensor([1, 2, 1, 2, 3]), torch.tensor([0, 0, 1, 1, 1]))
    assert calibration_error(torch.full((5,), 0.7), pairs) == 0.0
    # One pair of equal scores at 0.5, three at σ(2) = 0.880797 of which two are right: 3/4 · |0.880797 − 2/3| in one bin, 0 in the other.
    scores = torch.tensor([1.0, 1.0, 2.0, 0.0, 0.0, 2.0, 4.0, 2.0])
    pairs = make_pairs(torch.tensor([1, 2] * 4), torch.arange(4).repeat_interleave(2))
    assert calibration_error(scores, pairs) == pytest.approx(0.160598, abs=1e-6)


def test_correlation_of_a_constant_is_zero_and_of_a_line_one():
    assert correlation(torch.ones(5), torch.arange(5.0)) == 0.0
    assert correlation(torch.arange(5.0), 2 * torch.arange(5.0) + 1) == pytest.approx(1.0)
