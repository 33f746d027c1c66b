"""`rlhf rankings`: what was said of answers, its agreement, and where it goes."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pipeline.cli.options import JsonOption, StoreOption, make_console, open_store, open_store_to_write, print_json, refuse_idle, say
from pipeline.cli.ranking import AnswersArgument, JournalOption
from pipeline.errors import StoreError
from stages.spec import EXIT_USAGE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from data.answers import AnswerSet
    from pipeline.ranking.foreign import Export
    from pipeline.ranking.importing import Imported
    from pipeline.ranking.journal import Judgement


_TO_TRAIN_ON, _OTHER_TOOLS = "Comparisons to train on", "From and to other tools"
_HELD_OUT = 0.1


OutputOption = Annotated[
    Path | None, typer.Option("--output", "-o", help="Write comparisons here: data.comparisons.", rich_help_panel=_TO_TRAIN_ON)
]
PublishOption = Annotated[
    bool,
    typer.Option(
        "--publish", help="Publish them as an artifact, which data.comparisons names by ref: rankings@v1.", rich_help_panel=_TO_TRAIN_ON
    ),
]
HeldOutOption = Annotated[
    float | None,
    typer.Option(
        "--held-out",
        min=0.01,
        max=0.9,
        help=f"Share of conversations that --publish holds out, for good; default {_HELD_OUT}.",
        rich_help_panel=_TO_TRAIN_ON,
    ),
]
ByOption = Annotated[
    Literal["all", "people", "model"] | None,
    typer.Option(
        "--by",
        help="Whose rankings -o and --publish take; default: all, a model's where no person ranked.",
        rich_help_panel=_TO_TRAIN_ON,
    ),
]
ImportOption = Annotated[
    Path | None,
    typer.Option(
        "--import",
        metavar="FILE",
        help="Bring in rankings of Label Studio or Argilla (JSON), or a CSV table; again is nothing twice.",
        rich_help_panel=_OTHER_TOOLS,
    ),
]
QuestionOption = Annotated[
    str | None, typer.Option("--question", help="Of --import: which of Argilla's questions is the ranking.", rich_help_panel=_OTHER_TOOLS)
]
BucketsOption = Annotated[
    str,
    typer.Option("--buckets", help="Of --import: Label Studio's buckets, best first, such as good,fair,bad.", rich_help_panel=_OTHER_TOOLS),
]
ExportOption = Annotated[
    Path | None, typer.Option("--export", metavar="FILE", help="Write all that was said to this file.", rich_help_panel=_OTHER_TOOLS)
]
FormatOption = Annotated[
    Literal["csv", "label-studio", "argilla"] | None,
    typer.Option("--format", help="Of --export; default: csv for .csv files.", rich_help_panel=_OTHER_TOOLS),
]


def rankings_command(
    answers: AnswersArgument,
    journal: JournalOption = None,
    names: Annotated[bool, typer.Option("--names", help="Name the annotators; default: pseudonyms.")] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
    output: OutputOption = None,
    publish: PublishOption = False,
    held_out: HeldOutOption = None,
    by: ByOption = None,
    import_path: ImportOption = None,
    question: QuestionOption = None,
    buckets: BucketsOption = "",
    export_path: ExportOption = None,
    form: FormatOption = None,
) -> None:
    """Say how far the annotators agree, and write or publish their rankings as comparisons. Imports from other tools, and exports to them.

    Examples: rlhf rankings answers.jsonl -o ranked.jsonl; rlhf rankings answers@v1 --publish
    """
    from dataclasses import asdict, replace

    from pipeline.ranking.journal import Journal
    from pipeline.ranking.place import find_answers, tell_forgotten
    from pipeline.ranking.summary import summarise
    from pipeline.report.rankings import print_rankings
    from pipeline.rounds.publish import publish_rankings, tell_published

    refuse_idle({} if import_path else {"--question": question, "--buckets": buckets}, "without --import; needed both; add --import FILE")
    refuse_idle({} if export_path else {"--format": form}, "without --export; needed both; add --export FILE")
    refuse_idle({} if publish else {"--held-out": held_out}, "without --publish; needed both; add --publish")
    refuse_idle({} if publish or output else {"--by": by}, "without --output or --publish; needed one of them; add it")
    if export_path is not None and form is None and export_path.suffix.lower() != ".csv":
        raise StoreError(f"--export: {export_path}: found no --format; needed csv, label-studio or argilla; say which", EXIT_USAGE)
    told = [] if import_path is None else _import_rankings(answers, journal, store, import_path, question, buckets)
    place = find_answers(open_store(store), answers, journal)
    kept = Journal(place.journal)
    judgements = kept.list_of(place.sets)
    summary = summarise(judgements, place.sets)

    def rename(name: str) -> str:
        return name if names else kept.name_secretly(name)

    summary = replace(summary, annotators=tuple(replace(each, name=rename(each.name)) for each in summary.annotators))
    if output is not None:
        told.append(_write_comparisons(output, place.sets, judgements, by or "all"))
    if export_path is not None:
        told += _export_rankings(export_path, form or "csv", place.sets, judgements, rename)
    published = None
    if publish:
        opened = open_store_to_write(store)
        published = publish_rankings(opened, place, kept, summary, by or "all", names, held_out or _HELD_OUT)
        told += tell_published(published)
    else:
        told += tell_forgotten(place, kept.judgements.values())
    if as_json:
        forgotten = {"sets_forgotten": len(place.forgotten)} if place.forgotten else {}
        print_json(asdict(summary) | forgotten | ({"published": published.artifact.ref} if published else {}))
        return
    print_rankings(make_console(), summary)
    for line in told:
        say(make_console(), line)


def _import_rankings(
    answers: Path, journal: Path | None, store: Path | None, import_path: Path, question: str | None, buckets: str
) -> list[str]:
    """Bring in another tool's export, with its answers where there is no such file yet; returns what to tell."""
    from pipeline.ranking.importing import import_rankings
    from pipeline.ranking.journal import Journal
    from pipeline.ranking.place import find_answers, names_answers
    from pipeline.store.disk import expand_home

    imported = _read_export(import_path, question, buckets)
    told = [_make_answers(imported, answers)] if not expand_home(answers).exists() and not names_answers(answers) else []
    place = find_answers(open_store(store), answers, journal)
    place.make_room()
    return told + _tell_imported(import_rankings(imported, place.sets, Journal(place.journal), place.forgotten), import_path)


def _write_comparisons(
    output: Path, sets: "Mapping[str, AnswerSet]", judgements: "Sequence[Judgement]", by: Literal["all", "people", "model"]
) -> str:
    from pipeline.ranking.summary import make_comparisons
    from pipeline.store.disk import expand_home, writing
    from pipeline.text import count
    from stages.lines import to_line

    rows = list(make_comparisons(sets, judgements, by))
    if not rows:
        found = f"found {count(len(judgements), 'judgement')} and none that makes a comparison{'' if by == 'all' else f' by {by}'}"
        todo = "see --by" if judgements and by != "all" else "rank answers first: `rlhf rank`"
        raise StoreError(f"--output: {output}: {found}, needed one at least; {todo}", EXIT_USAGE)
    with writing(output, elsewhere="give another --output"), expand_home(output).open("w", encoding="utf-8") as stream:
        stream.writelines(to_line(row, ascii_only=False) for row in rows)
    return f"{count(len(rows), 'comparison')}: {output}"


def _read_export(path: Path, question: str | None, buckets: str) -> "Export":
    from pipeline.ranking.foreign import Options
    from pipeline.ranking.importing import read_export
    from pipeline.store.disk import expand_home

    source = expand_home(path)
    if not source.is_file():
        raise StoreError(
            f"--import: {path}: no such file; an export of Label Studio, of Argilla or a CSV file is needed; give one", EXIT_USAGE
        )
    return read_export(source, Options(question, tuple(name.strip() for name in buckets.split(",") if name.strip())))


def _make_answers(export: "Export", answers: Path) -> str:
    """Make the file of answers, which is not there yet, of what was ranked."""
    from pipeline.ranking.importing import make_answer_sets, match_rankings
    from pipeline.store.disk import expand_home, writing
    from pipeline.text import count
    from stages.lines import to_line

    sets = make_answer_sets(export)
    match_rankings(export, sets)  # what cannot be imported leaves no file either
    with writing(answers, elsewhere="name another file"):
        rows = (to_line(each.to_row(), ascii_only=False) for each in sets.values())
        expand_home(answers).write_text("".join(rows), encoding="utf-8")
    return f"{count(len(sets), 'answer set')}: {answers}"


def _tell_imported(imported: "Imported", path: Path) -> list[str]:
    from pipeline.text import count

    of = f"{count(imported.sets, 'answer set')} by {count(imported.annotators, 'annotator')}"
    told = [f"{imported.tool}: {count(imported.written, 'judgement')} of {of} imported from {path}"]
    told += [f"{imported.there:,} were there already"] * bool(imported.there)
    told += [f"{imported.replaced:,} replaced"] * bool(imported.replaced)
    if imported.left_out:
        told.append("left out: " + ", ".join(f"{number:,} {what}" for what, number in sorted(imported.left_out.items())))
    return told


def _export_rankings(
    path: Path,
    form: Literal["csv", "label-studio", "argilla"],
    sets: "Mapping[str, AnswerSet]",
    judgements: "Sequence[Judgement]",
    rename: "Callable[[str], str]",
) -> list[str]:
    from pipeline.ranking.exporting import export_rankings, make_label_studio_config
    from pipeline.store.disk import expand_home, writing
    from pipeline.text import count

    files = {path: export_rankings(sets, judgements, form, rename)}
    if form == "label-studio":
        files[path.with_suffix(".xml")] = make_label_studio_config(max(len(each.completions) for each in sets.values()))
    for name, text in files.items():
        with writing(name, elsewhere="give another --export"):
            expand_home(name).write_text(text, encoding="utf-8", newline="")
    repeats = sum(each.repeat for each in judgements) if form == "argilla" else 0
    told = [f"{count(len(judgements) - repeats, 'judgement')}: {', '.join(map(str, files))}"]
    graded = sum(bool(each.grades) for each in judgements) if form != "csv" else 0
    told += [f"left out: the grades of each answer in {count(graded, 'judgement')}, which CSV alone holds"] * bool(graded)
    return told + [f"left out: {count(repeats, 'repetition')}, as Argilla holds one response of a person"] * bool(repeats)
