"""The commands by which people rank answers."""

import getpass
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pipeline.cli.options import JsonOption, ask_line, make_console, open_recipe, print_json, say
from pipeline.errors import StoreError
from stages.spec import EXIT_RESOURCE, EXIT_USAGE

if TYPE_CHECKING:
    from data.answers import AnswerSet
    from pipeline.ranking.settings import Settings
    from pipeline.ranking.study import Study

AnswersArgument = Annotated[
    Path, typer.Argument(metavar="ANSWERS", help='A file with lines such as {"prompt": "...", "completions": ["a", "b", "c"]}.')
]
JournalOption = Annotated[
    Path | None,
    typer.Option("--journal", "-j", help="Where judgements are kept; the same one goes on. Default: beside ANSWERS, .rankings.jsonl."),
]


def rank_command(
    answers: AnswersArgument,
    journal: JournalOption = None,
    annotator: Annotated[list[str], typer.Option("--annotator", "-a", help="Who ranks; repeatable. Default: your user name.")] = [],
    recipe: Annotated[str | None, typer.Option("--recipe", "-r", help="Its block `ranking` says how; options go before it.")] = None,
    flag: Annotated[
        list[str], typer.Option("--flag", help="What an answer can be marked as; repeatable. Default: harmful, wrong, off-topic.")
    ] = [],
    guidelines: Annotated[Path | None, typer.Option("--guidelines", help="A Markdown file that is shown beside the answers.")] = None,
    overlap: Annotated[
        float | None, typer.Option("--overlap", min=0, max=1, help="Share of the sets that everybody ranks; default 0.1.")
    ] = None,
    repeats: Annotated[
        float | None, typer.Option("--repeats", min=0, max=0.5, help="Share of judgements that repeat a set; default 0.1.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Of the orders in which sets and answers are shown; default 0.")] = None,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Of the page; 0: any that is free.")] = 0,
    on_terminal: Annotated[bool, typer.Option("--terminal", help="Rank here, line by line, instead of on a page.")] = False,
) -> None:
    """Rank answers on a page on this machine, or on the terminal. Each judgement is on the disk at once; the same command goes on.

    Example: rlhf rank answers.jsonl -a ann -a ben, then open the link of each.
    """
    from pipeline.ranking.journal import Journal
    from pipeline.ranking.study import Study
    from pipeline.store.disk import expand_home
    from pipeline.text import count

    if on_terminal:
        _require_terminal(annotator)
    given: dict[str, object] = {"flags": flag or None, "overlap": overlap, "repeats": repeats, "seed": seed}
    settings = _read_settings(recipe, guidelines, given)
    sets = _read_answers(expand_home(answers))
    path = _find_journal(answers, journal)
    study = Study(sets, Journal(path), settings)
    say(make_console(), f"{count(len(sets), 'answer set')}; judgements go to {path}")
    names = annotator or [getpass.getuser()]
    if on_terminal:
        from pipeline.ranking.terminal import rank_on_terminal

        rank_on_terminal(study, names[0], make_console(), ask_line)
    else:
        _serve(study, names, port)


def _serve(study: "Study", names: list[str], port: int) -> None:
    from pipeline.ranking.server import RankingServer

    try:
        server = RankingServer(study, names, port)
    except OSError as error:
        raise StoreError(f"--port: {port}: {error.strerror}; needed a free one; leave it away", EXIT_RESOURCE) from error
    for name, link in server.links.items():
        progress = study.progress(name)
        say(make_console(), f"{name}: {progress.done} done, {progress.left} left: {link}")
    say(make_console(), "Ctrl-C ends the page; nothing is lost.")
    server.run()


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
        raise ConfigError([f"--flag: {each['msg'].removeprefix('Value error, ')}" for each in error.errors()]) from error


def rankings_command(
    answers: AnswersArgument,
    journal: JournalOption = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write comparisons here, to train on: data.comparisons.")] = None,
    by: Annotated[
        Literal["all", "people", "model"],
        typer.Option("--by", help="Whose rankings -o takes: people, model, or all (a model's where no person ranked)."),
    ] = "all",
    names: Annotated[bool, typer.Option("--names", help="Name the annotators; default: pseudonyms.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Say how far the annotators agree, and write their rankings as comparisons.

    Example: rlhf rankings answers.jsonl -o ranked.jsonl
    """
    from dataclasses import asdict, replace

    from pipeline.ranking.journal import Journal
    from pipeline.ranking.summary import make_comparisons, name_secretly, summarise
    from pipeline.report.rankings import print_rankings
    from pipeline.store.disk import expand_home, writing
    from pipeline.text import count
    from stages.lines import to_line

    sets = _read_answers(expand_home(answers))
    judgements = [each for each in Journal(_find_journal(answers, journal)).judgements.values() if each.item in sets]
    summary = summarise(judgements, sets)
    if not names:
        summary = replace(
            summary, annotators=tuple(replace(each, name=name_secretly(each.name, judgements)) for each in summary.annotators)
        )
    written = 0
    if output is not None:
        with writing(output), expand_home(output).open("w", encoding="utf-8") as stream:
            for row in make_comparisons(sets, judgements, by):
                stream.write(to_line(row, ascii_only=False))
                written += 1
    if as_json:
        print_json(asdict(summary))
        return
    print_rankings(make_console(), summary)
    if output is not None:
        say(make_console(), f"{count(written, 'comparison')}: {output}")


def _read_answers(path: Path) -> "dict[str, AnswerSet]":
    from data.answers import iter_answer_sets
    from stages.spec import DataSource

    if not path.is_file():  # never looked up on a hub, as data sources are
        found = "a directory" if path.is_dir() else "no such file"
        raise StoreError(f"{path}: {found}; a file of answers is needed; give one", EXIT_USAGE)
    return {each.id: each for each in iter_answer_sets(DataSource.model_validate({"path": str(path)}))}


def _find_journal(answers: Path, journal: Path | None) -> Path:
    from pipeline.store.disk import expand_home

    return expand_home(journal or answers.with_name(answers.name.removesuffix(".gz").rpartition(".")[0] + ".rankings.jsonl"))
