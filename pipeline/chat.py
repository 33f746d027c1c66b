"""Conversations with one model or two: what was said, what is asked next, what is saved. How it looks is `pipeline.report.chat`'s.

a line -> a command, or a message -> each model's answer, as it comes -> score -> history
"""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import StoreError
from pipeline.launch.dialogue import Dialogue
from pipeline.score import PRECISION
from pipeline.store.artifact import Artifact
from pipeline.store.disk import writing
from pipeline.store.store import Store
from stages.lines import to_line
from stages.spec import EXIT_FAILED, EXIT_USAGE

DEFAULT_TOKENS = 256
COMMANDS = "/undo, /system TEXT, /temperature NUMBER, /reset, /save [FILE], /quit; a message that begins with / is written with //"


@dataclass
class Chat:
    """What was said so far, for each model its own.

    Args:
        models: Who answers.
        temperature: Divisor of the logits; 0 takes the likeliest token.
        max_tokens: Longest answer.
        seed: Of the first answer; each further one has the next.
    """

    models: Sequence[Artifact]
    temperature: float
    max_tokens: int
    seed: int
    system: str = ""
    turns: list[tuple[str, list[dict[str, Any]]]] = field(default_factory=list[tuple[str, list[dict[str, Any]]]])
    asked: int = 0

    def messages(self, place: int, message: str) -> list[dict[str, str]]:
        """List what a model reads: its own conversation, and a new message."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        said: list[dict[str, str]] = []
        for asked, answers in self.turns:
            said += [{"role": "user", "content": asked}, {"role": "assistant", "content": answers[place]["text"]}]
        return [*system, *said, *([{"role": "user", "content": message}] if message else [])]

    def rows(self) -> list[dict[str, Any]]:
        """Return the conversations as rows, one for each model, which can be trained on."""
        kept = ("score", "finished", "tokens", "temperature", "seed")
        return [
            {
                "model": model.ref,
                "content_id": model.content_id,
                "messages": self.messages(place, ""),
                "answers": [{name: answers[place][name] for name in kept} for _, answers in self.turns],
            }
            for place, model in enumerate(self.models)
        ]


def find_reward_model(store: Store, policy: Artifact) -> Artifact | None:
    """Find the reward model that a policy learnt from; else the newest that was made from it. None where there is none."""
    try:
        ancestors = store.lineage(policy.ref)
    except StoreError:
        ancestors = []
    own = next((artifact for artifact in ancestors if artifact.kind == "rm"), None)
    if own is not None:
        return own
    made = (a for a in reversed(store.list("rm")) if any(parent.content_id == policy.content_id for parent in a.manifest.parents))
    return next(made, None)


def require_policy(artifact: Artifact) -> None:
    """Refuse to chat with what does not answer.

    Raises:
        StoreError: it is a reward model, or has no model (exit 2).
    """
    if artifact.kind == "rm" or not artifact.model_path.is_dir():
        what = "a reward model, which scores answers and gives none" if artifact.kind == "rm" else "no model"
        raise StoreError(f"{artifact.ref} is {what}; a policy is needed, such as sft or ppo; see `rlhf ls`", EXIT_USAGE)


def require_reward_model(artifact: Artifact) -> None:
    """Refuse to have something else score.

    Raises:
        StoreError: it is no reward model (exit 2).
    """
    if artifact.kind != "rm":
        raise StoreError(f"{artifact.ref} is no reward model; one is needed; see `rlhf ls rm`", EXIT_USAGE)


def choose_max_tokens(artifact: Artifact) -> int:
    """Say how long an answer may be: as in training."""
    config = artifact.manifest.config
    for block, name in (("ppo", "max_response_tokens"), ("tokens", "max_response_tokens")):
        value = config[block].get(name) if isinstance(config.get(block), dict) else None
        if isinstance(value, int) and value > 0:
            return value
    return DEFAULT_TOKENS


def open_chat(chat: Chat, reward_model: Artifact | None) -> Dialogue:
    """Start the program that answers; it loads the models while the first message is written."""
    program = Dialogue("stages.chat")
    program.ask(
        models=[str(model.opened_path) for model in chat.models],
        precisions=[model.manifest.precision or PRECISION for model in chat.models],
        reward_model=str(reward_model.opened_path) if reward_model else None,
        reward_precision=(reward_model.manifest.precision if reward_model else None) or PRECISION,
    )
    return program


def exchange(
    chat: Chat, program: Dialogue, message: str, told: Callable[[int, str], None], answered: Callable[[int, dict[str, Any]], None]
) -> str | None:
    """Have each model answer a message, and keep what was said.

    Args:
        chat: The conversation.
        program: As `open_chat` starts it, ready.
        message: Of the user.
        told: Hears of (model, text) as it comes.
        answered: Hears each whole answer.

    Returns:
        Why it cannot be answered, and then nothing is kept; None where it was.
    """
    answers: list[dict[str, Any]] = []
    seed = (chat.seed + chat.asked) % 2**31
    chat.asked += 1
    for place in range(len(chat.models)):
        asked = {"temperature": chat.temperature, "max_tokens": chat.max_tokens, "seed": seed}
        program.ask(model=place, messages=chat.messages(place, message), **asked)
        for heard in program.hear():
            if "problem" in heard:
                return str(heard["problem"])
            if heard.get("done"):
                answer = {name: heard[name] for name in ("text", "finished", "tokens", "score")}
                answers.append({**answer, "temperature": chat.temperature, "seed": seed})
                answered(place, answers[-1])
                break
            told(place, str(heard["text"]))
    if len(answers) < len(chat.models):
        raise StoreError("stages.chat ended in the middle of an answer; run it again", EXIT_FAILED)
    chat.turns.append((message, answers))
    return None


def obey(chat: Chat, line: str, save: Callable[[str], str]) -> str:
    """Do what a command says; returns what to say of it.

    Args:
        chat: Is changed.
        line: Begins with a slash.
        save: Saves the conversation in a file of this name; says what it did.
    """
    name, _, rest = line[1:].partition(" ")
    rest = rest.strip()
    if name == "undo":
        return f"taken back: {chat.turns.pop()[0]}" if chat.turns else "nothing to take back"
    if name == "system":
        chat.system = rest
        return "the system message is set; what was said stays" if rest else "there is no system message any more"
    if name == "reset":
        chat.turns.clear()
        return "begun anew"
    if name == "temperature":
        try:
            wanted = float(rest)
        except ValueError:
            wanted = -1.0
        if not 0 <= wanted <= 100:
            return f"found {rest!r:.40}, needed a number from 0 (the likeliest answer) to 100, such as /temperature 0.7"
        chat.temperature = wanted
        return f"temperature {wanted:g}"
    if name == "help":
        return COMMANDS
    if name == "save":
        return save(rest)
    return f"no command /{name[:40]}; there are {COMMANDS}"


def save_chat(chat: Chat, path: Path) -> str:
    """Append the conversations to a file, a line of JSON for each model.

    Raises:
        ResourceError: it cannot be written.
    """
    if not chat.turns:
        return "nothing was said yet; nothing is saved"
    lines = "".join(to_line(row) for row in chat.rows())
    with writing(path, elsewhere="save in another file"), os.fdopen(_open_to_append(path), "wb") as stream:
        stream.write(lines.encode())
    return f"saved in {path}"


def require_writable(path: Path) -> None:
    """Refuse a file that `save_chat` could not write, and leave things as they are.

    Raises:
        ResourceError: it cannot be written (exit 5).
    """
    with writing(path, elsewhere="save in another file"):
        was_there = path.exists()
        os.close(_open_to_append(path))
        if not was_there:
            path.unlink()


def _open_to_append(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)


def answer_data(chat: Chat, message: str) -> str:
    """Write the last exchange as a line of JSON."""
    answers = [{"model": model.ref, **answer} for model, answer in zip(chat.models, chat.turns[-1][1], strict=True)]
    return json.dumps({"prompt": message, "answers": answers})


def problem_data(message: str, line: int, problem: str) -> str:
    """Write a message that could not be answered, and why, as a line of JSON."""
    return json.dumps({"prompt": message, "answers": [], "line": line, "problem": problem})
