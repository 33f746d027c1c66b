"""A second reward model as a judge: one that PPO did not learn from, with a tokenizer and a chat template of its own, or an encoder.

    python -P -m stages.responses.judge_model PATH REVISION KEY < [[prompt, response], ...]

opens it and asks it once for each; the pipeline tries it so before the first stage trains.
"""

import json
import sys
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoTokenizer

from data.chat import encode_conversations
from data.schema import DataError, Message
from stages.blocks import HardwareSettings
from stages.models.calibration import Calibration, has_calibration, read_calibration
from stages.models.precision import freeze
from stages.models.tokenizer import load_tokenizer, open_tokenizer
from stages.models.weights import load_weights, open_pretrained
from stages.process.errors import StageError
from stages.responses.encoder import is_encoder, load_encoder, score_pairs
from stages.responses.scores import score_rankings, score_texts
from stages.spec import ANSWERED, EXIT_OK, EXIT_USAGE


class JudgeModel:
    """A reward model that is asked of texts."""

    def __init__(
        self, path: str, revision: str | None, hardware: HardwareSettings, device: torch.device, key: str = "evaluate.judge.reward_model"
    ) -> None:
        """Open it.

        Args:
            path: Its directory, or hub id.
            revision: Of a hub's.
            hardware: What computes.
            device: Where.
            key: Of the recipe, which names it.

        Raises:
            StageError: It cannot be opened, is no scalar reward model of a family that we know, or has no chat template.
        """
        self.path, self.is_ours, self._key = path, has_calibration(path), key
        try:
            self.is_encoder = not self.is_ours and is_encoder(open_pretrained(AutoTokenizer, path, revision=revision))
            self.tokenizer: Any = self._open_tokenizer(revision)
            model: Any = (
                load_encoder(path, revision) if self.is_encoder else load_weights("SEQ_CLS", path, hardware, engine=None, revision=revision)
            )
        except StageError as error:
            raise StageError(f"{key}: {error}", error.exit_code) from error
        if not self.is_encoder:
            model.calibration = read_calibration(path) if self.is_ours else Calibration()
            model = freeze(model, hardware)
        self.model: Any = model.eval().to(device)

    def _open_tokenizer(self, revision: str | None) -> Any:
        if self.is_encoder:
            return open_pretrained(AutoTokenizer, self.path, revision=revision)
        tokenizer = load_tokenizer(self.path) if self.is_ours else open_tokenizer(self.path, revision)
        if not tokenizer.chat_template:
            raise StageError(
                f"{self.path}: found no chat template, needed the one that it was trained with; set it in its tokenizer", EXIT_USAGE
            )
        return tokenizer

    def score(self, conversations: Sequence[Sequence[Message]], responses: Sequence[str], finished: Sequence[bool]) -> list[float]:
        """Score responses to conversations: as `rlhf score` where the model is ours, else at the end of what its template writes.

        An encoder is given the conversation's text and the response as a pair; of several messages, each in a paragraph of its own.

        Raises:
            ValueError: Found, needed; one of them cannot be scored.
        """
        if self.is_encoder:
            prompts = ["\n\n".join(message.content for message in conversation) for conversation in conversations]
            try:
                return score_pairs(self.tokenizer, self.model, list(zip(prompts, responses, strict=True)))
            except ValueError as error:
                raise ValueError(f"{self._key}: {self.path}: {error}") from error
        if self.is_ours:
            rows = [
                {"prompt": [{"role": m.role, "content": m.content} for m in conversation], "response": response, "finished": done}
                for conversation, response, done in zip(conversations, responses, finished, strict=True)
            ]
            found = score_texts(self.tokenizer, self.model, rows)
            if refused := next((score for score in found if isinstance(score, str)), None):
                raise ValueError(f"{self._key}: {self.path}: {refused}")
            return [float(score) for score in found]
        try:
            whole = [
                [*conversation, Message("assistant", response)] for conversation, response in zip(conversations, responses, strict=True)
            ]
            encoded = encode_conversations(self.tokenizer, whole)
        except DataError as error:
            raise ValueError(f"{self._key}: {self.path}: {error.problems[0].message}") from error
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        longest = max(map(len, encoded), default=0)
        if limit is not None and longest > limit:
            raise ValueError(
                f"{self._key}: {self.path}: found a conversation of {longest} tokens, needed at most {limit}; take another judge"
            )
        return score_rankings(self.model, [(ids[:-1], [ids[-1:]]) for ids in encoded]).tolist()


def main() -> int:
    """Try a reward model on samples; what is wrong with it is the last line of standard error."""
    path, revision, key = sys.argv[1:]
    try:
        hardware = HardwareSettings.model_validate({"precision": "float32"})
        judge = JudgeModel(path, revision or None, hardware, torch.device("cpu"), key)
        samples = json.load(sys.stdin)
        judge.score([[Message("user", prompt)] for prompt, _ in samples], [response for _, response in samples], [True] * len(samples))
    except (StageError, ValueError) as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return EXIT_USAGE
    print(f"\n{ANSWERED}")
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
