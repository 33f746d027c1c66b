"""What the reward model's stage says of held-out comparisons, by hand and by plain loops."""

import math
import random

import numpy as np
import pytest
import torch

from data.tokens import EncodedComparison
from stages.rm import report_ranking


def compare(prompt, ranks, lengths, source=""):
    return EncodedComparison([prompt], [[5] * length for length in lengths], ranks, source)


def test_figures_by_hand():
    """The first has two pairs, a rank apart, both right; the second one, two ranks apart, with equal scores; the third none."""
    comparisons = [compare(1, (2, 1, 2), (3, 1, 2), "a"), compare(2, (1, 3), (4, 4), "b"), compare(3, (1, 1), (9, 9), "b")]
    scores = torch.tensor([0.0, 1.0, 0.2, 0.5, 0.5, 7.0, 7.0])
    metrics, intervals = report_ranking(scores, comparisons)
    # -log σ(1) = 0.313262, -log σ(0.8) = 0.371101, -log 1/2 = 0.693147: ((0.313262 + 0.371101) / 2 + 0.693147) / 2.
    assert metrics["eval/loss"] == pytest.approx(0.517664, abs=1e-6)
    assert (metrics["eval/pairs"], metrics["eval/accuracy"]) == (3, pytest.approx(2.5 / 3))
    assert (metrics["eval/accuracy_rank_distance_1"], metrics["eval/accuracy_rank_distance_2"]) == (1, 0.5)
    assert (metrics["eval/accuracy_source_a"], metrics["eval/accuracy_source_b"]) == (1, 0.5)
    # σ(1) = 0.731059 and σ(0.8) = 0.689974 are always right, 0.5 in half of the cases: (0.268941 + 0.310026 + 0) / 3.
    assert metrics["eval/calibration_error"] == pytest.approx(0.192989, abs=1e-6)
    lengths = np.array([3, 1, 2, 4, 4, 9, 9])
    assert metrics["eval/length_correlation"] == pytest.approx(np.corrcoef(scores.numpy(), lengths)[0, 1])
    assert intervals["eval/accuracy"].n == 2 and "eval/accuracy_source_a" not in intervals  # one prompt alone shows no spread


def test_figures_are_those_of_plain_loops_and_what_belongs_to_one_prompt_is_one_cluster():
    chance = random.Random(0)
    comparisons = []
    for index in range(40):
        ranks = tuple(chance.randint(1, 3) for _ in range(chance.randint(2, 5)))
        if len(set(ranks)) > 1:
            lengths = [chance.randint(1, 9) for _ in ranks]
            comparisons.append(compare(index // 2, ranks, lengths, chance.choice(["", "x", "y"])))
    scores = torch.tensor([chance.choice([chance.gauss(0, 2), 0.0]) for item in comparisons for _ in item.ranks])
    left, losses, pairs = iter(scores.tolist()), [], []
    for item in comparisons:
        scored = list(zip(item.ranks, [next(left) for _ in item.ranks], strict=True))
        found = [(better - worse, s - r, item.source) for worse, s in scored for better, r in scored if worse < better]
        losses.append(sum(math.log1p(math.exp(-margin)) for _, margin, _ in found) / len(found))
        pairs += found
    right = {True: 1.0, False: 0.0}
    metrics, intervals = report_ranking(scores, comparisons)
    assert metrics["eval/loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert metrics["eval/pairs"] == len(pairs)
    groups = {"": pairs}
    groups |= {f"_rank_distance_{apart}": [pair for pair in pairs if pair[0] == apart] for apart in (1, 2)}
    groups |= {f"_source_{name}": [pair for pair in pairs if pair[2] == name] for name in ("x", "y")}
    for name, members in groups.items():
        shares = [0.5 if margin == 0 else right[margin > 0] for _, margin, _ in members]
        assert 0.5 in shares and metrics[f"eval/accuracy{name}"] == pytest.approx(sum(shares) / len(shares)), name
    assert {name for name in metrics if name.startswith("eval/accuracy")} == {f"eval/accuracy{name}" for name in groups}
    assert intervals["eval/accuracy"].n == len({item.prompt_ids[0] for item in comparisons}) < len(comparisons)
