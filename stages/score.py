"""A reward model's scores of answers that come from outside: `rlhf score`. No stage of a recipe; it leaves nothing.

    python -P -m stages.score < REQUESTS

first line    {"model": directory, "precision": float32 | bfloat16}
then          {"prompt": [{"role", "content"}, ...], "response": text, "finished": bool}, one for each answer
it writes     {"scores": [...]} as they are there, in the order of the requests: a number, or a text that says why there is none
              {"error": text, "exit_code": number} where it cannot go on
"""

import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from data.chat import encode_prompts
from data.schema import DataError, Message
from data.tokens import encode_response
from stages.blocks import HardwareSettings
from stages.lines import read_line
from stages.models.reward_model import load_reward_model
from stages.models.tokenizer import load_tokenizer
from stages.process.errors import StageError
from stages.process.output import redact_streams
from stages.responses.scores import score_rankings
from stages.spec import EXIT_OK

_BATCH = 256


def main() -> int:
    """Score what comes by standard input."""
    redact_streams()
    output, sys.stdout = sys.stdout, sys.stderr  # what a library prints is no answer

    def say(**fields: Any) -> None:
        output.write(json.dumps(fields) + "\n")
        output.flush()

    lines = sys.stdin.buffer
    given = read_line(lines.readline())
    try:
        tokenizer, model = load_tokenizer(given["model"]), open_reward_model(given["model"], given["precision"])
        for batch in _batches(map(read_line, lines)):
            say(scores=score_answers(tokenizer, model, batch))
    except StageError as error:
        say(error=str(error), exit_code=error.exit_code)
        return error.exit_code
    return EXIT_OK


def open_reward_model(path: str, precision: str) -> Any:
    """Open a reward model to be asked, on a GPU where there is one."""
    model: Any = load_reward_model(path, HardwareSettings.model_validate({"precision": precision}))
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def score_answers(tokenizer: Any, model: Any, rows: Sequence[dict[str, Any]]) -> list[float | str]:
    """Score answers; of one that cannot be scored it is said why."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    scores: list[float | str] = []
    encoded: list[tuple[list[int], list[int]]] = []
    for row in rows:
        try:
            prompt_ids = encode_prompts(tokenizer, [[Message(**message) for message in row["prompt"]]])[0]
            response_ids = encode_response(tokenizer, row["response"])
        except DataError as error:
            scores.append("; ".join(f"{problem.field}: {problem.message}" for problem in error.problems))
            continue
        # What was cut off in PPO was scored as it was, without the end token.
        response_ids = response_ids if row["finished"] else response_ids[:-1]
        length = len(prompt_ids) + len(response_ids)
        if not response_ids or (limit is not None and length > limit):
            scores.append(f"found {length} tokens; needed at most {limit}" if response_ids else "found no token of an answer; needed one")
            continue
        scores.append(0.0)
        encoded.append((prompt_ids, response_ids))
    found = iter(score_rankings(model, [(prompt, [response]) for prompt, response in encoded]).tolist() if encoded else [])
    return [score if isinstance(score, str) else next(found) for score in scores]


def _batches(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    for row in rows:
        batch.append(row)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


if __name__ == "__main__":
    sys.exit(main())
