"""A reward model's scores of answers that come from outside: `rlhf score`. No stage of a recipe; it leaves nothing.

    python -P -m stages.score < REQUESTS

first line    {"model": directory, "precision": float32 | bfloat16}
then          {"prompt": [{"role", "content"}, ...], "response": text, "finished": bool}, one for each answer
it writes     {"note": text, "scores": []} first, where it computes in another precision
              {"scores": [...]} as they are there, in the order of the requests: a number, or a text that says why there is none
              {"error": text, "exit_code": number} where it cannot go on
"""

import sys
from itertools import islice

from data.template_check import require_template
from stages.models.reward_model import open_reward_model
from stages.models.tokenizer import load_tokenizer
from stages.process.dialogue import Lines, Say, hold_dialogue
from stages.process.machine import choose_precision
from stages.responses.scores import score_texts

_BATCH = 256


def score(lines: Lines, say: Say) -> None:
    """Open the reward model that the first line names, and score the others."""
    given = next(lines)
    tokenizer = load_tokenizer(given["model"])
    require_template(tokenizer)
    precision, note = choose_precision(given["precision"])
    if note:
        say(note=note, scores=[])
    model = open_reward_model(given["model"], precision)
    while batch := list(islice(lines, _BATCH)):
        say(scores=score_texts(tokenizer, model, batch))


if __name__ == "__main__":
    sys.exit(hold_dialogue(score))
