"""Models that answer conversations, token by token, and a reward model that scores what they say: `rlhf chat`. No stage of a recipe.

    python -P -m stages.chat, asked and answering by a line of JSON each

first line    {"models": [directory, ...], "precisions": [...], "reward_model": directory or null, "reward_precision": ...}
              -> {"ready": true}, with "notes": [text, ...] where a model is slower than others or computes in another precision
then          {"model": place, "messages": [{"role", "content"}, ...], "temperature": number, "max_tokens": number, "seed": number}
              -> {"text": what was said since the last line}, ...
              -> {"done": true, "text": all of it, "finished": bool, "tokens": number, "score": number or null}
              or {"problem": text}: this conversation cannot be answered, the next one may
              or {"error": text, "exit_code": number}: it cannot go on

A temperature of 0 takes the likeliest token. SIGINT ends the answer that is being written.
"""

import functools
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any

from data.chat import encode_prompts
from data.schema import DataError, Message
from data.template_check import require_template
from stages.blocks import HardwareSettings
from stages.models.handoff import identify_tokenizer
from stages.models.policy import load_policy
from stages.models.reward_model import open_reward_model
from stages.models.tokenizer import align_special_tokens, load_tokenizer
from stages.process.dialogue import Lines, Say, hold_dialogue
from stages.process.gpu import prepare_gpu
from stages.process.machine import choose_precision
from stages.responses.generation import describe_decoding, generate_responses
from stages.responses.judging import response_text
from stages.responses.scores import score_rankings, score_texts


class Speaker:
    """A model and its tokenizer."""

    def __init__(self, path: str, precision: str) -> None:
        self.tokenizer: Any = load_tokenizer(path)
        require_template(self.tokenizer)  # of a model that came from elsewhere nobody has tried it
        hardware = HardwareSettings.model_validate({"precision": precision})
        prepare_gpu(hardware)
        model: Any = load_policy(path, hardware)
        align_special_tokens(model, self.tokenizer)
        self.model: Any = model.eval()

    def encode(self, messages: Sequence[Message], max_tokens: int) -> tuple[list[int], int]:
        """Encode a conversation; returns its ids, and how many tokens the answer may have.

        Raises:
            DataError: the template refuses it.
            ValueError: it leaves no room for an answer.
        """
        ids = encode_prompts(self.tokenizer, [messages])[0]
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        room = max_tokens if limit is None else min(max_tokens, limit - len(ids))
        if room < 1:
            raise ValueError(f"the conversation has {len(ids)} tokens, the model takes {limit}; /undo, or /reset to begin anew")
        return ids, room


class Scorer:
    """A reward model and its tokenizer; None of both where nothing scores."""

    def __init__(self, path: str | None, precision: str) -> None:
        self.tokenizer: Any = load_tokenizer(path) if path else None
        self.model: Any = open_reward_model(path, precision) if path else None

    def score(self, speaker: Speaker, messages: list[dict[str, str]], prompt_ids: list[int], ids: list[int], text: str) -> float | None:
        """Score an answer: the ids that were sampled where both models have one tokenizer, as in PPO; else its text."""
        if self.model is None:
            return None
        if identify_tokenizer(self.tokenizer) == identify_tokenizer(speaker.tokenizer):
            return score_rankings(self.model, [(prompt_ids, [ids])]).item()
        finished = ids[-1] == speaker.tokenizer.eos_token_id
        score = score_texts(self.tokenizer, self.model, [{"prompt": messages, "response": text, "finished": finished}])[0]
        return None if isinstance(score, str) else score


class Stop:
    """Whether somebody wants the answer to end."""

    def __init__(self) -> None:
        self.wanted = False
        signal.signal(signal.SIGINT, self._want)

    def _want(self, number: int, frame: FrameType | None) -> None:
        self.wanted = True


def answer(speaker: Speaker, scorer: Scorer, asked: dict[str, Any], stop: Stop, say: Say) -> None:
    """Answer one conversation."""
    try:
        ids, room = speaker.encode([Message(**message) for message in asked["messages"]], asked["max_tokens"])
    except DataError as error:
        say(problem="; ".join(problem.message for problem in error.problems))
        return
    except ValueError as error:
        say(problem=str(error))
        return
    said = ""

    def hear(response: Sequence[int]) -> bool:
        nonlocal said
        text = response_text(speaker.tokenizer, response)
        if text.startswith(said) and len(text) > len(said) and not text.endswith("\ufffd"):  # a character may be several tokens
            say(text=text[len(said) :])
            said = text
        return stop.wanted

    stop.wanted = False
    response = generate_responses(
        speaker.model,
        [ids],
        max_new_tokens=room,
        stop_token_ids={speaker.tokenizer.eos_token_id},
        temperature=asked["temperature"] or 1.0,
        greedy=not asked["temperature"],
        seed=asked["seed"],
        max_rows=1,
        stops=hear,
    )[0]
    text = response_text(speaker.tokenizer, response.ids)
    say(
        done=True,
        text=text,
        finished=response.ids[-1] == speaker.tokenizer.eos_token_id,
        tokens=len(response.ids),
        score=scorer.score(speaker, asked["messages"], ids, response.ids, text),
    )


def converse(stop: Stop, lines: Lines, say: Say) -> None:
    """Open the models that the first line names, and answer the others."""
    given = next(lines)
    chosen = [choose_precision(precision) for precision in given["precisions"]]
    reward_precision, _ = choose_precision(given["reward_precision"])
    speakers = [Speaker(path, precision) for path, (precision, _) in zip(given["models"], chosen, strict=True)]
    scorer = Scorer(given["reward_model"], reward_precision)
    notes = [f"a model {note}" for _, note in chosen if note] + [describe_decoding(speaker.model) for speaker in speakers]
    told = list(dict.fromkeys(filter(None, notes)))
    say(ready=True, **({"notes": told} if told else {}))
    for asked in lines:
        answer(speakers[asked["model"]], scorer, asked, stop, say)


if __name__ == "__main__":
    sys.exit(hold_dialogue(functools.partial(converse, Stop())))
