"""A simulated person who ranks answers: by the demo's rule, with the noise that its comparisons have.

Of no use outside of the demo: it judges what the judge judges, so its rounds show that the loop closes, not that people agree with it.
"""

from collections.abc import Sequence
from random import Random

from data.demo.generator import RANKING_NOISE, draw_gumbel
from data.demo.helpdesk import read_case
from data.demo.rule import assess

_TIE = 0.5  # points: what differs by less looks the same to it


def rank_answers(prompt: str, answers: Sequence[str], rng: Random, *, noise: float = RANKING_NOISE) -> list[list[int]]:
    """Put answers in order, best first; those in one level are ties. Answers that are the same text get the same points.

    Args:
        prompt: Of the demo's task.
        answers: As they are shown.
        rng: Draws the noise.
        noise: Scale of the Gumbel noise on the rule's points.
    """
    case = read_case(prompt)
    points = {answer: assess(case, answer).points + noise * draw_gumbel(rng) for answer in dict.fromkeys(answers)}
    levels: list[list[int]] = []
    last: float | None = None
    for place in sorted(range(len(answers)), key=lambda place: -points[answers[place]]):
        if last is not None and last - points[answers[place]] < _TIE:
            levels[-1].append(place)
        else:
            levels.append([place])
            last = points[answers[place]]
    return levels
