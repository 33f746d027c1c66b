"""The commands by which people rank answers."""

import getpass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.options import JsonOption, make_console, print_json, say
from pipeline.errors import StoreError
from stages.spec import EXIT_RESOURCE, EXIT_USAGE

if TYPE_CHECKING:
    from data.answers import AnswerSet

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
    flag: Annotated[list[str], typer.Option("--flag", help="What an answer can be marked as; repeatable.")] = [
        "harmful",
        "wrong",
        "off-topic",
    ],
    guidelines: Annotated[Path | None, typer.Option("--guidelines", help="A text file that is shown beside the answers.")] = None,
    overlap: Annotated[float, typer.Option("--overlap", min=0, max=1, help="Share of the sets that everybody ranks.")] = 0.1,
    seed: Annotated[int, typer.Option("--seed", help="Of the orders in which sets and answers are shown.")] = 0,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Of the page; 0: any that is free.")] = 0,
) -> None:
    """Rank answers on a page on this machine. Each judgement is on the disk at once; the same command goes on.

    Example: rlhf rank answers.jsonl -a ann -a ben, then open the link of each.
    """
    from pipeline.ranking.journal import Journal
    from pipeline.ranking.server import RankingServer
    from pipeline.ranking.study import Settings, Study
    from pipeline.store.disk import expand_home
    from pipeline.text import count

    console = make_console()
    sets = _read_answers(expand_home(answers))
    path = _find_journal(answers, journal)
    try:
        text = expand_home(guidelines).read_text(encoding="utf-8") if guidelines else ""
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"--guidelines: {guidelines}: {error}; needed a text file in UTF-8", EXIT_USAGE) from error
    names = annotator or [getpass.getuser()]
    settings = Settings(tuple(flag), text, overlap, seed)
    study = Study(sets, Journal(path), settings)
    try:
        server = RankingServer(study, names, port)
    except OSError as error:
        raise StoreError(f"--port: {port}: {error.strerror}; needed a free one; leave it away", EXIT_RESOURCE) from error
    say(console, f"{count(len(sets), 'answer set')}; judgements go to {path}")
    for name, link in server.links.items():
        progress = study.progress(name)
        say(console, f"{name}: {progress.done} done, {progress.left} left: {link}")
    say(console, "Ctrl-C ends the page; nothing is lost.")
    server.run()


def rankings_command(
    answers: AnswersArgument,
    journal: JournalOption = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write comparisons here, to train on: data.comparisons.")] = None,
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
    summary = summarise(judgements)
    if not names:
        summary = replace(
            summary, annotators=tuple(replace(each, name=name_secretly(each.name, judgements)) for each in summary.annotators)
        )
    written = 0
    if output is not None:
        with writing(output), expand_home(output).open("w", encoding="utf-8") as stream:
            for row in make_comparisons(sets, judgements):
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
