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
    from collections.abc import Callable

    from data.answers import AnswerSet
    from pipeline.ranking.journal import Journal, Judgement
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
    import_path: Annotated[
        Path | None,
        typer.Option(
            "--import", metavar="FILE", help="Bring in rankings of Label Studio or Argilla (JSON), or a CSV table; again is nothing twice."
        ),
    ] = None,
    question: Annotated[str | None, typer.Option("--question", help="Which question of the imported file is the ranking.")] = None,
    buckets: Annotated[str, typer.Option("--buckets", help="Label Studio's buckets, best first: good,fair,bad.")] = "",
    export_path: Annotated[Path | None, typer.Option("--export", metavar="FILE", help="Write all that was said to this file.")] = None,
    form: Annotated[
        Literal["csv", "label-studio", "argilla"] | None, typer.Option("--format", help="Of --export; default: csv for .csv files.")
    ] = None,
    names: Annotated[bool, typer.Option("--names", help="Name the annotators; default: pseudonyms.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Say how far the annotators agree, and write their rankings as comparisons. Imports from other tools, and exports to them.

    Example: rlhf rankings answers.jsonl -o ranked.jsonl
    """
    from dataclasses import asdict, replace

    from pipeline.ranking.journal import Journal
    from pipeline.ranking.summary import make_comparisons, name_secretly, summarise
    from pipeline.report.rankings import print_rankings
    from pipeline.store.disk import expand_home, writing
    from pipeline.text import count
    from stages.lines import to_line

    if export_path is not None and form is None and export_path.suffix.lower() != ".csv":
        raise StoreError(f"--export: {export_path}: found no --format; needed csv, label-studio or argilla; say which", EXIT_USAGE)
    store = Journal(_find_journal(answers, journal))
    told = [] if import_path is None else _import_rankings(import_path, answers, store, question, buckets)
    sets = _read_answers(expand_home(answers))
    judgements = [each for each in store.judgements.values() if each.item in sets]
    summary = summarise(judgements, sets)

    def rename(name: str) -> str:
        return name if names else name_secretly(name, judgements)

    summary = replace(summary, annotators=tuple(replace(each, name=rename(each.name)) for each in summary.annotators))
    if output is not None:
        rows = list(make_comparisons(sets, judgements, by))
        with writing(output), expand_home(output).open("w", encoding="utf-8") as stream:
            stream.writelines(to_line(row, ascii_only=False) for row in rows)
        told.append(f"{count(len(rows), 'comparison')}: {output}")
    if export_path is not None:
        told += _export_rankings(export_path, form or "csv", sets, judgements, rename)
    if as_json:
        print_json(asdict(summary))
        return
    print_rankings(make_console(), summary)
    for line in told:
        say(make_console(), line)


def _import_rankings(path: Path, answers: Path, journal: "Journal", question: str | None, buckets: str) -> list[str]:
    """Bring another tool's rankings into a journal; where there are no answers yet, their file is made of what was ranked."""
    from pipeline.ranking.foreign import Options
    from pipeline.ranking.importing import import_rankings, make_answer_sets, read_export
    from pipeline.store.disk import expand_home, writing
    from pipeline.text import count
    from stages.lines import to_line

    source, target = expand_home(path), expand_home(answers)
    if not source.is_file():
        raise StoreError(
            f"--import: {path}: no such file; an export of Label Studio, of Argilla or a CSV file is needed; give one", EXIT_USAGE
        )
    chosen = Options(question, tuple(name.strip() for name in buckets.split(",") if name.strip()))
    export = read_export(source, chosen)
    told: list[str] = []
    if target.exists():
        sets = _read_answers(target)
    else:
        sets = make_answer_sets(export)
        rows = [each.to_row() for each in sets.values()]
        with writing(target):
            target.write_text("".join(to_line(row, ascii_only=False) for row in rows), encoding="utf-8")
        told.append(f"{count(len(sets), 'answer set')}: {answers}")
    imported = import_rankings(export, sets, journal)
    of = f"{count(imported.sets, 'answer set')} by {count(imported.annotators, 'annotator')}"
    told.append(f"{imported.tool}: {count(imported.written, 'judgement')} of {of} imported from {path}")
    told += [f"{imported.there:,} were there already"] * bool(imported.there) + [f"{imported.replaced:,} replaced"] * bool(
        imported.replaced
    )
    if imported.left_out:
        told.append("left out: " + ", ".join(f"{number:,} {what}" for what, number in sorted(imported.left_out.items())))
    return told


def _export_rankings(
    path: Path,
    form: Literal["csv", "label-studio", "argilla"],
    sets: "dict[str, AnswerSet]",
    judgements: "list[Judgement]",
    rename: "Callable[[str], str]",
) -> list[str]:
    from pipeline.ranking.exporting import export_rankings, make_label_studio_config
    from pipeline.store.disk import expand_home, writing
    from pipeline.text import count

    files = {path: export_rankings(sets, judgements, form, rename)}
    if form == "label-studio":
        files[path.with_suffix(".xml")] = make_label_studio_config(max(len(each.completions) for each in sets.values()))
    for name, text in files.items():
        with writing(name):
            expand_home(name).write_text(text, encoding="utf-8", newline="")
    repeats = sum(each.repeat for each in judgements) if form == "argilla" else 0
    told = [f"{count(len(judgements) - repeats, 'judgement')}: {', '.join(map(str, files))}"]
    return told + [f"left out: {count(repeats, 'repetition')}, as Argilla holds one response of a person"] * bool(repeats)


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
