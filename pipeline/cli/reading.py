"""The commands that look at what a stage made: its answers, its ancestors, what differs between two, a report of one or two."""

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.options import JsonOption, RefArgument, StoreOption, make_console, open_store, print_json, say
from stages.spec import EXIT_VERIFICATION


def show_command(
    ref: RefArgument,
    everything: Annotated[bool, typer.Option("--all", help="The whole manifest: every figure, count, setting's hash and fact.")] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one artifact: the verdict, the figures that matter, how they went, three answers, what it was made from.

    Example: rlhf show ppo
    """
    from pipeline.report.show import page_data, print_artifact, print_page, show_data

    opened = open_store(store)
    artifact = opened.get(ref)
    if as_json:
        print_json(show_data(opened, artifact) | page_data(opened, artifact))
    elif everything:
        print_artifact(make_console(), show_data(opened, artifact))
    else:
        print_page(make_console(), artifact, page_data(opened, artifact))


def samples_command(
    ref: RefArgument,
    worst: Annotated[bool, typer.Option("--worst", help="Those with the lowest figure first.")] = False,
    best: Annotated[bool, typer.Option("--best", help="Those with the highest figure first.")] = False,
    draw: Annotated[bool, typer.Option("--random", help="Drawn anew each time.")] = False,
    text: Annotated[
        str | None, typer.Option("--grep", metavar="TEXT", help="Only where the prompt or the answer holds this text, in either case.")
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            "--by",
            metavar="FIGURE",
            help="What --worst and --best go by: judge, score, kl, length, or any figure of the file; default: judge where there "
            "is one, else score.",
        ),
    ] = None,
    count: Annotated[int, typer.Option("--n", "-n", min=1, help="How many.")] = 5,
    model: Annotated[str | None, typer.Option("--model", help="Only of this model of an evaluation: base, sft, ppo.")] = None,
    way: Annotated[str | None, typer.Option("--way", help="Only answers of this way: sampled, greedy.")] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show an artifact's answers to held-out prompts.

    Example: rlhf samples ppo --worst --by score -n 3
    """
    from pipeline.report.samples import Order, Wanted, find_samples, print_samples, samples_data

    orders: list[Order] = [*(["worst"] if worst else []), *(["best"] if best else []), *(["random"] if draw else [])]
    if len(orders) > 1:
        raise typer.BadParameter(f"found --{' and --'.join(orders)}; needed one of them")
    if by is not None and orders not in (["worst"], ["best"]):
        raise typer.BadParameter("--by says what --worst and --best go by; give one of them with it")
    artifact = open_store(store).get(ref)
    wanted = Wanted(count, orders[0] if orders else "first", by, text, model, way)
    found = find_samples(artifact, wanted)
    if as_json:
        print_json({"ref": artifact.ref, **samples_data(found)})
    else:
        print_samples(make_console(), artifact.ref, wanted, found)


def lineage_command(ref: RefArgument, store: StoreOption = None, as_json: JsonOption = False) -> None:
    """Show what an artifact was made from, as a tree: artifacts, data, base model. Exit code 3 when something of it is missing.

    Example: rlhf lineage ppo@best
    """
    from pipeline.report.lineage import find_problems, lineage_data, print_lineage

    opened = open_store(store)
    tree = lineage_data(opened, opened.get(ref))
    if as_json:
        print_json(tree)
    else:
        print_lineage(make_console(), tree)
    if find_problems(tree):
        raise typer.Exit(EXIT_VERIFICATION)


def diff_command(
    before: Annotated[str, typer.Argument(metavar="A", help="The artifact before: ppo@v1, sft, ...")],
    after: Annotated[str, typer.Argument(metavar="B", help="The artifact after.")],
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what differs between two artifacts, ancestors included: settings, data, code, packages, and what that did to the figures.

    Example: rlhf diff ppo@v1 ppo@v2
    """
    from pipeline.report.differences import diff_data, print_diff

    opened = open_store(store)
    data = diff_data(opened, opened.get(before), opened.get(after))
    if as_json:
        print_json(data)
    else:
        print_diff(make_console(), data)


def watch_command(
    run: Annotated[
        str | None,
        typer.Argument(metavar="[STAGE|RUN]", help="A stage, or a run by the beginning of its name; the one that runs when left out."),
    ] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Watch a stage that runs, from another terminal or another machine; ends with it, and with its exit code.

    Example: rlhf watch ppo
    """
    from pipeline.report.runs import WatchView, place_data
    from pipeline.runs.watching import find_run, follow, read_exit_code
    from stages.lines import to_line

    opened = open_store(store)
    last = find_run(opened, run)
    with nullcontext() if as_json else WatchView(make_console(), last) as view:
        for events, place, row in follow(opened, last["run"]):
            last = row
            if view is None:
                print(to_line(place_data(events, place, row)), end="", flush=True)
            else:
                view.show(events, place, row)
    raise typer.Exit(read_exit_code(last))


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
