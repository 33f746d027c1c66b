"""The command that writes a report: one HTML file of one artifact, or of two and what changed between them."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.options import JsonOption, StoreOption, make_console, open_store, print_json, say


def report_command(
    ref: Annotated[str | None, typer.Argument(metavar="REF", help="An artifact, such as ppo@v3; default: the newest.")] = None,
    other: Annotated[str | None, typer.Argument(metavar="REF2", help="A second one: what changed between them, and what it did.")] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="PATH", help="A directory, or a file that ends in .html; default: STORE/reports."),
    ] = None,
    open_it: Annotated[bool, typer.Option("--open", help="Show it in a browser, where there is a desktop; never over SSH.")] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write what happened as one HTML file: verdict, answers side by side, pictures, what is missing.

    Examples: `rlhf report`, `rlhf report ppo@v3 -o ~/reports`, `rlhf report ppo@v1 ppo@v2 --open`.
    """
    from pipeline.pasted import complete
    from pipeline.report.page.build import build_page, give_verdicts
    from pipeline.report.page.comparison import compare_page
    from pipeline.report.page.evidence import find_newest, gather
    from pipeline.report.page.write import has_desktop, is_private, name_report, open_in_browser, render, write_report
    from pipeline.store.disk import expand_home

    opened = open_store(store)
    first = gather(opened, *find_newest(opened)) if ref is None else gather(opened, opened.get(ref))
    second = None if other is None else gather(opened, opened.get(other))
    evidence = [first] if second is None else [first, second]
    page = build_page(first, opened.root) if second is None else compare_page(first, second)
    subjects = [part.subject for part in evidence]
    target = None if output is None else expand_home(output).absolute()
    private = any(map(is_private, subjects))
    path = write_report(render(page), name_report(*subjects), opened.root, target, private=private, option="--output PATH")
    verdicts = [verdict for part in evidence for verdict in give_verdicts(part)[: 1 if second is not None else None]]
    if as_json:
        told = [{"of": name, "sentence": verdict.sentence, "news": verdict.news} for name, verdict in verdicts]
        print_json({"path": str(path), "verdicts": told, "missing": list(page.missing)})
    else:
        from rich.text import Text

        from pipeline.report.tables import print_indented
        from pipeline.text import clean

        terminal = make_console()
        for name, verdict in verdicts:
            print_indented(terminal, Text(clean(complete(f"{name}: {verdict.sentence}"))), "")
        if page.missing:
            several = f"{len(page.missing)} things are missing; the report names them"
            print_indented(terminal, Text(clean(several if len(page.missing) > 1 else f"missing: {page.missing[0]}")), "")
        say(terminal, f"report: {path}")
    if open_it and has_desktop():
        open_in_browser(path)
