"""The commands that ask models: chat with policies, have a reward model score answers. What computes is a program of `stages`."""

import secrets
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.options import JsonOption, RefArgument, StoreOption, ask_line, make_console, open_store
from pipeline.errors import StoreError
from stages.spec import EXIT_FAILED, EXIT_USAGE

if TYPE_CHECKING:
    from pipeline.chat import Chat
    from pipeline.launch.dialogue import Dialogue
    from pipeline.report.chat import ChatView

RewardOption = Annotated[
    str | None,
    typer.Option(
        "--rm", metavar="REF", help="The reward model that scores; default: the one of its lineage, else the newest made from it."
    ),
]


def chat_command(
    ref: RefArgument,
    versus: Annotated[str | None, typer.Option("--vs", metavar="REF2", help="A second model, which answers the same messages.")] = None,
    reward: RewardOption = None,
    temperature: Annotated[
        float,
        typer.Option("--temperature", min=0.0, max=100.0, help="Divisor of the logits; 1 samples as in training, 0 takes the likeliest."),
    ] = 1.0,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", min=1, help="Longest answer; default: as in training.")] = None,
    system: Annotated[str, typer.Option("--system", help="A system message.")] = "",
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Of the sampling; default: another one each time.")] = None,
    save: Annotated[
        Path | None, typer.Option("--save", metavar="FILE", help="Append the conversation to this file at the end, JSONL.")
    ] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Chat with a policy, or with two side by side; the reward model's score stands beside each answer. In a pipe: a message a line.

    Commands: /undo, /system TEXT, /temperature NUMBER, /reset, /save [FILE], /quit; Ctrl-C ends an answer.

    Example: rlhf chat ppo --vs sft
    """
    from pipeline.chat import (
        Chat,
        choose_max_tokens,
        find_reward_model,
        open_chat,
        require_policy,
        require_reward_model,
        require_writable,
        save_chat,
    )
    from pipeline.report.chat import ChatView
    from pipeline.store.disk import expand_home

    opened = open_store(store)
    models = [opened.require_verified(opened.get(name).ref) for name in (ref, versus) if name is not None]
    for model in models:
        require_policy(model)
    scorer = opened.get(reward) if reward is not None else find_reward_model(opened, models[0])
    if scorer is not None:
        require_reward_model(scorer)
        opened.require_verified(scorer.ref)
    limit = max_tokens or max(choose_max_tokens(model) for model in models)
    chat = Chat(models, temperature, limit, secrets.randbelow(2**31) if seed is None else seed, system)
    view = ChatView(make_console(), [model.ref for model in models])
    by_hand = sys.stdin.isatty() and not as_json
    if by_hand:
        scored = f"scored by {scorer.ref}" if scorer else "nothing scores: there is no reward model of its lineage (--rm REF)"
        view.say(f"{' and '.join(model.ref for model in models)}; {scored}; /help lists commands, /quit ends", "bold")
    with ExitStack() as stack:
        if save is not None:
            require_writable(expand_home(save))  # before the first answer
            stack.callback(lambda: print(save_chat(chat, expand_home(save)), file=sys.stderr))
        program = stack.enter_context(open_chat(chat, scorer))
        all_answered = _talk(chat, program, view, by_hand=by_hand, as_json=as_json)
    if not all_answered and not by_hand:
        raise typer.Exit(EXIT_FAILED)


def _talk(chat: "Chat", program: "Dialogue", view: "ChatView", *, by_hand: bool, as_json: bool) -> bool:
    """Read lines and answer them, until there are no more; tells whether every message was answered."""
    from pipeline.chat import answer_data, exchange, obey, problem_data, save_chat
    from pipeline.store.disk import expand_home

    def save(name: str) -> str:
        try:
            return save_chat(chat, expand_home(name or f"chat-{chat.models[0].ref}-{time.strftime('%Y%m%d-%H%M%S')}.jsonl"))
        except StoreError as error:
            return error.message

    ready, all_answered = False, True
    for number, line in enumerate(_read_lines(by_hand=by_hand), 1):
        if line.startswith("/") and not line.startswith("//"):
            if line.split(maxsplit=1)[0] in ("/quit", "/exit"):
                break
            said = obey(chat, line, save)
            print(said, file=sys.stderr) if as_json else view.say(said, "dim")
            continue
        message = line.removeprefix("/") if line.startswith("//") else line
        if not message.strip():
            continue
        if not ready:
            if by_hand:
                view.say("opening the models", "dim")
            opened = next(program.hear(), None)
            ready = opened is not None
            for note in (opened or {}).get("notes", []):
                print(f"note: {note}", file=sys.stderr) if as_json else view.say(f"note: {note}", "dim")
        view.begin()
        with _answers_end_by_interrupt(program):
            problem = exchange(chat, program, message, *((_ignore, _ignore) if as_json else (view.told, view.answered)))
        if problem is not None:
            all_answered = False
            told = f"{'' if by_hand else f'standard input:{number}: '}not answered: {problem}"
            print(told, file=sys.stderr) if as_json else view.say(told, "yellow")
            if as_json:
                print(problem_data(message, number, problem), flush=True)
        elif as_json:
            print(answer_data(chat, message), flush=True)
    return all_answered


def _ignore(place: int, said: object) -> None:
    pass


def _read_lines(*, by_hand: bool) -> Iterator[str]:
    """Yield what is asked: line by line from a pipe, on a terminal with an editor's keys."""
    if not by_hand:
        for number, line in enumerate(sys.stdin.buffer, 1):
            try:
                yield line.decode().rstrip("\r\n")
            except UnicodeDecodeError as error:
                told = f"standard input:{number}: found bytes that are no UTF-8; needed text; correct the line"
                raise StoreError(f"{told}; it and those after it are not answered", EXIT_USAGE) from error
        return
    while True:
        try:
            line = ask_line()
        except EOFError:
            print()
            return
        yield line


def _answers_end_by_interrupt(program: "Dialogue") -> ExitStack:
    """Inside, Ctrl-C ends the answer and not the chat."""
    import signal

    stack = ExitStack()
    before = signal.signal(signal.SIGINT, lambda number, frame: program.interrupt())
    stack.callback(lambda: signal.signal(signal.SIGINT, before))
    return stack


def score_command(
    ref: RefArgument,
    file: Annotated[str, typer.Argument(metavar="FILE", help="JSONL rows of prompt and response, or of messages; - reads standard input.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Where the rows go, with their scores; default: standard output.")
    ] = None,
    store: StoreOption = None,
) -> None:
    """Have a reward model score a file of answers: the same rows come out, as JSONL, each with its `score`.

    Example: rlhf score rm answers.jsonl --out scored.jsonl
    """
    from pipeline.chat import require_reward_model
    from pipeline.report.headline import write_figure
    from pipeline.report.progress import CountView
    from pipeline.score import open_answers, read_answers, score
    from pipeline.store.disk import expand_home, writing
    from pipeline.text import count
    from stages.lines import to_line

    opened = open_store(store)
    model = opened.get(ref)
    require_reward_model(model)
    opened.require_verified(model.ref)
    if file == "-":
        answers = read_answers(sys.stdin.buffer, "standard input")
    else:
        with open_answers(expand_home(file)) as stream:
            answers = read_answers(stream, file)
    with ExitStack() as stack:
        target = sys.stdout
        if out is not None:  # before the work: it may not be writable
            stack.enter_context(writing(out, elsewhere="give another --out"))
            target = stack.enter_context(expand_home(out).open("a", encoding="utf-8"))  # what is there stays until the scores are
        with CountView(make_console(err=True), f"{model.ref} scores answers") as view:
            scored = score(model, answers, view.told)
        lines = [to_line(row, ascii_only=False) for row in scored.rows]
        if out is not None and expand_home(out).is_file():
            target.truncate(0)
        target.writelines(lines)
    for problem in (*scored.notes, *scored.problems):
        print(problem, file=sys.stderr)
    if scored.mean is not None:
        mean = write_figure(scored.mean, scored.interval, with_n=True)
        print(f"{count(len(lines) - len(scored.problems), 'answer')}, mean score {mean}", file=sys.stderr)
    if scored.problems:
        raise typer.Exit(EXIT_FAILED)
