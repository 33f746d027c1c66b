"""A second reward model as a judge: one that PPO did not learn from, with a tokenizer and a chat template of its own.

    python -P -m stages.responses.judge_model PATH REVISION < [[prompt, response], ...]

opens it and asks it once for each; the pipeline tries it so before the first stage trains.
"""

import json
import sys
from collections.abc import Sequence
from typing import Any

import torch

from data.chat import encode_conversations
from data.schema import DataError, Message
from stages.blocks import HardwareSettings
from stages.models.calibration import Calibration, has_calibration, read_calibration
from stages.models.precision import freeze
from stages.models.tokenizer import load_tokenizer, open_tokenizer
from stages.models.weights import load_weights
from stages.process.errors import StageError
from stages.responses.scores import score_rankings, score_texts
from stages.spec import EXIT_OK, EXIT_USAGE

_KEY = "evaluate.judge.reward_model"


class JudgeModel:
    """A reward model that is asked of texts."""

    def __init__(self, path: str, revision: str | None, hardware: HardwareSettings, device: torch.device) -> None:
        """Open it.

        Raises:
            StageError: It cannot be opened, is no scalar reward model of a family that we know, or has no chat template.
        """
        self.path, self.is_ours = path, has_calibration(path)
        try:
            self.tokenizer: Any = load_tokenizer(path) if self.is_ours else open_tokenizer(path, revision)
            if not self.tokenizer.chat_template:
                raise StageError(
                    f"{path}: found no chat template, needed the one that it was trained with; set it in its tokenizer", EXIT_USAGE
                )
            model: Any = load_weights("SEQ_CLS", path, hardware, engine=None, revision=revision)
        except StageError as error:
            raise StageError(f"{_KEY}: {error}", error.exit_code) from error
        model.calibration = read_calibration(path) if self.is_ours else Calibration()
        self.model: Any = freeze(model, hardware).eval().to(device)

    def score(self, conversations: Sequence[Sequence[Message]], responses: Sequence[str], finished: Sequence[bool]) -> list[float]:
        """Score responses to conversations: as `rlhf score` where the model is ours, else at the end of what its template writes.

        Raises:
            ValueError: Found, needed; one of them cannot be scored.
        """
        if self.is_ours:
            rows = [
                {"prompt": [{"role": m.role, "content": m.content} for m in conversation], "response": response, "finished": done}
                for conversation, response, done in zip(conversations, responses, finished, strict=True)
            ]
            found = score_texts(self.tokenizer, self.model, rows)
            if refused := next((score for score in found if isinstance(score, str)), None):
                raise ValueError(f"{_KEY}: {self.path}: {refused}")
            return [float(score) for score in found]
        try:
            whole = [
                [*conversation, Message("assistant", response)] for conversation, response in zip(conversations, responses, strict=True)
            ]
            encoded = encode_conversations(self.tokenizer, whole)
        except DataError as error:
            raise ValueError(f"{_KEY}: {self.path}: {error.problems[0].message}") from error
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        longest = max(map(len, encoded), default=0)
        if limit is not None and longest > limit:
            raise ValueError(f"{_KEY}: {self.path}: found a conversation of {longest} tokens, needed at most {limit}; take another judge")
        return score_rankings(self.model, [(ids[:-1], [ids[-1:]]) for ids in encoded]).tolist()


def main() -> int:
    """Try a reward model on samples; what is wrong with it is the last line of standard error."""
    path, revision = sys.argv[1:]
    try:
        hardware = HardwareSettings.model_validate({"precision": "float32"})
        judge = JudgeModel(path, revision or None, hardware, torch.device("cpu"))
        samples = json.load(sys.stdin)
        judge.score([[Message("user", prompt)] for prompt, _ in samples], [response for _, response in samples], [True] * len(samples))
    except (StageError, ValueError) as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return EXIT_USAGE
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
