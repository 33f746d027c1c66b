"""The commands by which people rank answers."""

import getpass
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.options import (
    StoreOption,
    ask_line,
    make_console,
    open_recipe,
    open_store,
    open_store_to_write,
    refuse_idle,
    say,
)
from pipeline.errors import StoreError
from stages.spec import EXIT_FAILED, EXIT_RESOURCE, EXIT_USAGE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic_core import ErrorDetails

    from data.answers import AnswerSet
    from pipeline.ranking.journal import Journal
    from pipeline.ranking.place import AnswersPlace
    from pipeline.ranking.server import RankingServer
    from pipeline.ranking.settings import Settings
    from pipeline.ranking.study import Study

AnswersArgument = Annotated[
    Path,
    typer.Argument(
        metavar="ANSWERS",
        help='A file with lines such as {"prompt": "...", "completions": ["a", "b", "c"]}; or an artifact of `rlhf sample`: answers@v1.',
    ),
]
JournalOption = Annotated[
    Path | None,
    typer.Option(
        "--journal",
        "-j",
        help="Where judgements are kept; the same one goes on. Default: beside a file, .rankings.jsonl; of an artifact, in the store.",
    ),
]


_ENDPOINT_OPTIONS = {
    "url": "--url",
    "model": "--model",
    "api_key_env": "--api-key-env",
    "max_cost": "--max-cost",
    "price_per_1m_input": "--price-input",
    "price_per_1m_output": "--price-output",
}
_NO_FLAG = "found one without a name, or too long a name; needed a short one; leave it away or shorten it"
_HOW, _BY_MODEL = "How is ranked, before the recipe's block `ranking`", "With --by-model, before the recipe's ranking.judge"


GuidelinesOption = Annotated[
    Path | None,
    typer.Option("--guidelines", help="A Markdown file that is shown beside the answers; a model judges by it.", rich_help_panel=_HOW),
]
FlagOption = Annotated[
    list[str],
    typer.Option("--flag", help="What an answer can be marked as; repeatable. Default: harmful, wrong, off-topic.", rich_help_panel=_HOW),
]
OverlapOption = Annotated[
    float | None, typer.Option("--overlap", min=0, max=1, help="Share of the sets that everybody ranks; default 0.1.", rich_help_panel=_HOW)
]
RepeatsOption = Annotated[
    float | None,
    typer.Option("--repeats", min=0, max=0.5, help="Share of judgements that repeat a set; default 0.1.", rich_help_panel=_HOW),
]
SeedOption = Annotated[
    int | None,
    typer.Option("--seed", min=0, help="Of the orders in which sets and answers are shown; default 0.", rich_help_panel=_HOW),
]
UrlOption = Annotated[
    str | None, typer.Option("--url", help="OpenAI-compatible, such as http://localhost:8000/v1.", rich_help_panel=_BY_MODEL)
]
ModelOption = Annotated[str | None, typer.Option("--model", help="Its name there.", rich_help_panel=_BY_MODEL)]
KeyOption = Annotated[
    str | None, typer.Option("--api-key-env", help="The environment variable that holds the key.", rich_help_panel=_BY_MODEL)
]
InputPriceOption = Annotated[
    float | None, typer.Option("--price-input", help="Of a million tokens that it reads.", rich_help_panel=_BY_MODEL)
]
OutputPriceOption = Annotated[
    float | None, typer.Option("--price-output", help="Of a million tokens that it writes.", rich_help_panel=_BY_MODEL)
]
CostOption = Annotated[
    float | None, typer.Option("--max-cost", help="Most that it may cost in all; needs both prices.", rich_help_panel=_BY_MODEL)
]
LimitOption = Annotated[
    int | None, typer.Option("--limit", min=1, help="How many sets at most, chosen at random.", rich_help_panel=_BY_MODEL)
]


def rank_command(
    answers: AnswersArgument,
    journal: JournalOption = None,
    annotator: Annotated[list[str], typer.Option("--annotator", "-a", help="Who ranks; repeatable. Default: your user name.")] = [],
    recipe: Annotated[str | None, typer.Option("--recipe", "-r", help="Its block `ranking` says how; options go before it.")] = None,
    port: Annotated[
        int | None, typer.Option("--port", min=0, max=65535, help="Of the page; default: the same as before, else any that is free.")
    ] = None,
    on_terminal: Annotated[bool, typer.Option("--terminal", help="Rank here, line by line, instead of on a page.")] = False,
    by_model: Annotated[bool, typer.Option("--by-model", help="Let a language model rank, instead of a person.")] = False,
    store: StoreOption = None,
    guidelines: GuidelinesOption = None,
    flag: FlagOption = [],
    overlap: OverlapOption = None,
    repeats: RepeatsOption = None,
    seed: SeedOption = None,
    url: UrlOption = None,
    model: ModelOption = None,
    api_key_env: KeyOption = None,
    price_input: InputPriceOption = None,
    price_output: OutputPriceOption = None,
    max_cost: CostOption = None,
    limit: LimitOption = None,
) -> None:
    """Rank answers on a page on this machine, on the terminal, or by a model. Each judgement is on the disk at once; the command goes on.

    Example: rlhf rank answers.jsonl -a ann -a ben, then open the link of each.
    """
    from pipeline.ranking.journal import Journal, check_annotators
    from pipeline.ranking.place import find_answers, tell_forgotten
    from pipeline.store.parts import REPLIES_DIR

    endpoint: dict[str, object] = {"url": url, "model": model, "api_key_env": api_key_env, "max_cost": max_cost}
    endpoint |= {"price_per_1m_input": price_input, "price_per_1m_output": price_output}
    if by_model:
        of_people = {"--terminal": on_terminal, "--port": port, "--annotator": annotator}
        of_people |= {"--flag": flag, "--overlap": overlap, "--repeats": repeats}
        refuse_idle(of_people, "with --by-model, which asks no person; needed one of the two; leave the other away")
    else:
        of_models = {_ENDPOINT_OPTIONS[name]: value for name, value in endpoint.items()} | {"--limit": limit}
        refuse_idle(of_models, "without --by-model; needed both; add --by-model")
    if on_terminal:
        refuse_idle({"--port": port}, "with --terminal, which has no page; needed one of the two; leave the other away")
        _require_terminal(annotator)
    check_annotators(annotator)
    given: dict[str, object] = {"flags": flag or None, "overlap": overlap, "repeats": repeats, "seed": seed}
    settings = _read_settings(recipe, guidelines, given)
    opened = open_store_to_write(store) if by_model else open_store(store)
    place = find_answers(opened, answers, journal)
    place.make_room()
    kept = Journal(place.journal)
    for line in tell_forgotten(place, kept.judgements.values()):
        say(make_console(), line)
    if by_model:
        given_endpoint = {name: value for name, value in endpoint.items() if value is not None}
        _rank_by_model(place.sets, kept, settings, given_endpoint, limit, opened.root / REPLIES_DIR)
    else:
        _rank_by_people(place, kept, settings, annotator or [getpass.getuser()], port or 0, on_terminal=on_terminal)


def _rank_by_people(
    place: "AnswersPlace", journal: "Journal", settings: "Settings", names: list[str], port: int, *, on_terminal: bool
) -> None:
    from pipeline.ranking.study import Study
    from pipeline.ranking.terminal import rank_on_terminal
    from pipeline.text import count

    study = Study(place.sets, journal, settings)
    say(make_console(), f"{count(len(place.sets), 'answer set')}; judgements go to {place.journal}")
    if on_terminal:
        rank_on_terminal(study, names[0], make_console(), ask_line)
    else:
        _serve(study, names, port)


def _rank_by_model(
    sets: "Mapping[str, AnswerSet]",
    journal: "Journal",
    settings: "Settings",
    given: dict[str, object],
    limit: int | None,
    replies_dir: Path,
) -> None:
    from pydantic import ValidationError

    from pipeline.errors import ConfigError
    from pipeline.ranking.by_model import rank_by_model
    from pipeline.report.progress import CountView
    from pipeline.store.disk import writing
    from pipeline.text import count
    from stages.blocks import EndpointSettings
    from stages.responses.chat_http import ChatError

    try:
        judge = EndpointSettings.model_validate((settings.judge.model_dump() if settings.judge else {}) | given)
    except ValidationError as error:
        raise ConfigError(list(map(_tell_endpoint_error, error.errors()))) from error
    console = make_console()
    say(console, f"prompts and answers go to {judge.model} at {judge.url}; judgements, marked as its own, to {journal.path}")
    with writing(replies_dir), CountView(make_console(err=True), f"{judge.model} ranks answer sets") as view:
        try:
            judged = rank_by_model(
                sets,
                journal,
                judge,
                guidelines=settings.guidelines,
                cache_dir=replies_dir,
                seed=settings.seed,
                limit=limit,
                told=view.told,
            )
        except ChatError as error:
            raise StoreError(f"{error}; what was judged until then stands, and the same command goes on", EXIT_FAILED) from error
    hows = ", ".join(f"{number:,} {how}" for how, number in judged.pairs.items() if number)
    say(console, f"{count(judged.sets, 'set')} ranked now, {judged.before:,} before; of its pairs in both orders: {hows or 'none asked'}")
    cost = "" if judged.cost is None else f"; cost so far {judged.cost:.4g}"
    say(console, f"{judged.replies:,} replies, {judged.cached:,} of them cached{cost}")
    if judged.unclear:
        say(console, f"{count(judged.unclear, 'set')} not ranked, as a reply was no verdict: they stand as `cannot say`")
    if judged.unasked:
        found = f"{count(judged.unasked, 'set')} not asked, as they could cost more than is left of max_cost"
        raise StoreError(f"found {found}; needed more; raise --max-cost and run the same command", EXIT_RESOURCE)


def _tell_endpoint_error(error: "ErrorDetails") -> str:
    """Say what is wrong with an endpoint by the names of the options."""
    keys = ".".join(map(str, error["loc"]))
    name = _ENDPOINT_OPTIONS.get(keys, f"ranking.judge.{keys}" if keys else "--by-model")
    if error["type"] == "missing":
        return f"{name}: found none, needed one to ask; give --url and --model, or --recipe with ranking.judge"
    if error["type"] != "value_error":
        return f"{name}: found {error['input']!r:.60}; {error['msg']}; change it"
    told = error["msg"].removeprefix("Value error, ")
    for key in ("price_per_1m_input", "price_per_1m_output", "max_cost"):
        told = told.replace(key, _ENDPOINT_OPTIONS[key])
    return f"{name}: {told}"


def _serve(study: "Study", names: list[str], port: int) -> None:
    from pipeline.ranking.server import RankingServer

    try:
        server = _open_server(study, names) if port == 0 else RankingServer(study, names, port)
    except OSError as error:
        raise StoreError(f"--port: {port}: {error.strerror}; needed a free one; leave it away", EXIT_RESOURCE) from error
    for name, link in server.links.items():
        progress = study.progress(name)
        say(make_console(), f"{name}: {progress.done} done, {progress.left} left: {link}")
    say(make_console(), "Ctrl-C ends the page; nothing is lost.")
    server.run()


def _open_server(study: "Study", names: list[str]) -> "RankingServer":
    """Open the page at the port that it had before, where it is free: what a browser keeps of unsent rankings belongs to its address."""
    from pipeline.ranking.assignment import draw
    from pipeline.ranking.server import RankingServer

    try:
        return RankingServer(study, names, 20_000 + draw("port", study.journal.path.absolute()) % 10_000)
    except OSError:
        return RankingServer(study, names, 0)


def _require_terminal(annotators: list[str]) -> None:
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        needed = "needed one; leave --terminal away for a page, or bring rankings in by `rlhf rankings ANSWERS --import FILE`"
        raise StoreError(f"--terminal: found a pipe or a file in place of a terminal; {needed}", EXIT_USAGE)
    if len(annotators) > 1:
        raise StoreError(f"--annotator: found {len(annotators)} with --terminal; needed one; start the command once for each", EXIT_USAGE)


def _read_settings(recipe: str | None, guidelines: Path | None, given: dict[str, object]) -> "Settings":
    """Read how answers are ranked: options before the recipe's block before defaults; guidelines become their text.

    Raises:
        ConfigError: A flag is none.
        StoreError: The guidelines cannot be read.
    """
    from pydantic import ValidationError

    from pipeline.errors import ConfigError
    from pipeline.ranking.settings import Settings, read_guidelines, read_text

    block = open_recipe(recipe, [], ()).ranking if recipe else Settings.model_validate({})
    chosen = {name: value for name, value in given.items() if value is not None}
    text = read_text(guidelines) if guidelines else read_guidelines(block.guidelines)
    try:
        return Settings.model_validate(block.model_dump() | chosen | {"guidelines": text})
    except ValidationError as error:
        told = [each["msg"].removeprefix("Value error, ") if each["type"] == "value_error" else _NO_FLAG for each in error.errors()]
        raise ConfigError([f"--flag: {line}" for line in told]) from error
