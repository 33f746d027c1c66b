"""Seed -> rows of demonstrations, comparisons and prompts, training and held out; no prompt occurs twice."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from data.demo.flaws import add_flaw
from data.demo.helpdesk import Case, draw_case, write_prompt
from data.demo.labelers import DEMONSTRATORS, RANKED, write_answer
from data.demo.rule import assess

ANSWERS_PER_LIST = 4
# Scale of the Gumbel noise on the rule's points when a simulated labeler ranks a list: about 3 % of pairs come out reversed.
RANKING_NOISE = 4.0
FLAW_ATTEMPTS = 5

Row = dict[str, object]


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many rows of each kind; the measured learning bands hold for the defaults."""

    demonstrations: int = 2000
    comparisons: int = 8000
    prompts: int = 1500
    held_out: int = 200
    held_out_comparisons: int = 1000  # with 200 the pair accuracy has a standard error of 0.015, as much as seeds differ


def build(seed: int, sizes: Sizes | None = None) -> dict[str, list[Row]]:
    """Generate all rows of the demo, the same for the same seed.

    Returns:
        `demonstrations.train`, `demonstrations.eval`, `comparisons.train`, ... -> rows as JSON objects.
    """
    sizes = sizes or Sizes()
    rng = Random(seed)
    seen: set[str] = set()

    def draw_fresh_case() -> Case:
        while (prompt := write_prompt(case := draw_case(rng))) in seen:
            pass
        seen.add(prompt)
        return case

    writers: dict[str, tuple[int, int, Callable[[Case], Row]]] = {
        "demonstrations": (sizes.demonstrations, sizes.held_out, lambda case: _demonstrate(case, rng)),
        "comparisons": (sizes.comparisons, sizes.held_out_comparisons, lambda case: _compare(case, rng)),
        "prompts": (sizes.prompts, sizes.held_out, lambda case: {"prompt": write_prompt(case)}),
    }
    return {
        f"{kind}.{split}": [write(draw_fresh_case()) for _ in range(num_rows)]
        for kind, (num_train, num_eval, write) in writers.items()
        for split, num_rows in (("train", num_train), ("eval", num_eval))
    }


def _demonstrate(case: Case, rng: Random) -> Row:
    return {"prompt": write_prompt(case), "completion": write_answer(case, rng, DEMONSTRATORS)}


def _compare(case: Case, rng: Random) -> Row:
    """Rank two independent answers, each with a copy that has one more flaw, as a noisy labeler would."""
    answers: list[str] = []
    while len(answers) < ANSWERS_PER_LIST:
        answer = write_answer(case, rng, RANKED)
        if answer in answers:
            continue
        answers.append(answer)
        for _ in range(FLAW_ATTEMPTS):
            flawed = add_flaw(case, answer, rng)
            if flawed not in answers:
                answers.append(flawed)
                break
    answers = answers[:ANSWERS_PER_LIST]
    noisy_points = {answer: assess(case, answer).points + RANKING_NOISE * draw_gumbel(rng) for answer in answers}
    best_first = sorted(answers, key=noisy_points.__getitem__, reverse=True)
    return {"prompt": write_prompt(case), "completions": best_first, "ranks": list(range(1, len(answers) + 1))}


def draw_gumbel(rng: Random) -> float:
    """Draw from the Gumbel distribution: ranking by points plus this noise is choosing by softmax of the points, again and again."""
    return -math.log(-math.log(rng.random()))
