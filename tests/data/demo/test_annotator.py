"""The simulated annotator ranks by the rule, with noise."""

from random import Random

from data.demo.annotator import rank_answers
from data.demo.generator import Sizes, build
from data.demo.rule import judge

PROMPT = "Order: silver wallet. Status: packed. Day: Thursday. Amir asks: what is happening with my order?"
GOOD = "Hi Amir! Your silver wallet is packed and is due on Thursday. You can follow it with the link in your email. Have a nice day!"
RUDE = "Your silver wallet is packed and is due on Thursday. That is not our problem."
WRONG = "Your silver wallet was delivered on Monday."


def test_without_noise_it_ranks_by_the_rule_and_ties_what_is_worth_the_same():
    assert rank_answers(PROMPT, [RUDE, GOOD, WRONG, GOOD], Random(0), noise=0.0) == [[1, 3], [0], [2]]


def test_with_noise_it_reverses_as_many_pairs_as_the_demos_labelers_and_the_same_text_stays_tied():
    rng, reversed_pairs, pairs = Random(1), 0, 0
    few = Sizes(demonstrations=1, comparisons=400, prompts=1, held_out=1, held_out_comparisons=1)
    for row in build(3, few)["comparisons.train"]:
        answers = [*row["completions"], row["completions"][0]]
        levels = rank_answers(row["prompt"], answers, rng)
        place = {answer: number for number, level in enumerate(levels) for answer in level}
        assert place[0] == place[len(answers) - 1] and sorted(place) == list(range(len(answers)))
        points = [judge(row["prompt"], answer)["score"] for answer in row["completions"]]
        for one in range(len(points)):
            for other in range(len(points)):
                if points[one] - points[other] > 4:
                    pairs += 1
                    reversed_pairs += place[one] > place[other]
    assert 0.005 < reversed_pairs / pairs < 0.06
