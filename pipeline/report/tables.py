"""Plans, artifacts and outcomes -> tables and plain data. Texts of models and files pass `clean`, and never as markup."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.errors import StoreError
from pipeline.pasted import complete, pasted
from pipeline.report.headline import headline, labels_of
from pipeline.store.artifact import Artifact
from pipeline.store.manifest import Manifest
from pipeline.store.store import Store
from pipeline.text import clean, format_bytes, format_duration
from stages.result import Interval
from stages.spec import ARTIFACT_KINDS, EXIT_MISSING, EXIT_RESOURCE

if TYPE_CHECKING:  # `rlhf ls` needs neither
    from data.schema import RecordKind
    from pipeline.inputs.prepare import Inputs
    from pipeline.plan import Decision
    from pipeline.recipe.schema import Recipe
    from pipeline.remotes.remote import Remote
    from pipeline.run import Outcome
    from pipeline.tokens import Counts

_ID_CHARS = 12


def print_table(console: Console, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows of plain text under headings; cells are folded where a terminal is too narrow for them."""
    cells, widths = _measure([columns, *rows])
    if _fits(console, widths):
        _print_lines(console, cells, widths)
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in cells[1:]:
        table.add_row(*map(Text, row))
    console.print(table)


def print_turned_table(console: Console, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows of which each is named by its first cell; where a terminal is too narrow for them, as columns, then folded."""
    turned = list(zip(columns, *rows, strict=True))
    too_wide = [not _fits(console, _measure(table)[1]) for table in ([columns, *rows], turned)]
    if too_wide == [True, False]:
        columns, rows = turned[0], turned[1:]
    print_table(console, columns, rows)


def print_figures_table(console: Console, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows of which the last cell is long: below the others where the terminal is too narrow for both."""
    cells, widths = _measure([columns, *rows])
    if _fits(console, widths):
        _print_lines(console, cells, widths)
        return
    for number, row in enumerate(cells):
        console.print(Text(_pad(row[:-1], widths), style="" if number else "bold"), soft_wrap=True)
        if row[-1] and number:
            print_indented(console, Text(row[-1]), "    ")


def _measure(rows: Iterable[Sequence[str]]) -> tuple[list[list[str]], list[int]]:
    cells = [[clean(cell) for cell in row] for row in rows]
    return cells, [max(map(cell_len, column)) for column in zip(*cells, strict=True)]


def _fits(console: Console, widths: Sequence[int]) -> bool:
    return not console.is_terminal or sum(widths) + 2 * (len(widths) - 1) <= console.width


def _print_lines(console: Console, cells: Sequence[Sequence[str]], widths: Sequence[int]) -> None:
    """Print a line for each row, all at once: a table of rich's takes 0.4 ms for each, which a store of 1,000 artifacts would feel."""
    lines = [_pad(row, widths) for row in cells]
    console.print(Text(lines[0], style="bold"), soft_wrap=True)
    if lines[1:]:
        console.out("\n".join(lines[1:]), highlight=False)


def _pad(row: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=False)).rstrip()


def print_line(console: Console, line: str, style: str = "") -> None:
    """Print a line, which stays one, and of which nothing is taken for markup or an escape."""
    console.print(Text(clean(line), style=style), soft_wrap=True)


def print_indented(console: Console, text: Text, mark: str) -> None:
    """Print text behind a mark, on a terminal wrapped under it; elsewhere as one line."""
    lines = text.wrap(console, max(20, console.width - len(mark))) if console.is_terminal else [text]
    for place, line in enumerate(lines):
        console.print(Text.assemble(mark if place == 0 else " " * len(mark), line), soft_wrap=True)


def print_plan(console: Console, decisions: "Sequence[Decision]") -> None:
    """Print what will happen to each stage, and why."""
    width = max(4, *(len(decision.stage) for decision in decisions))
    for decision in decisions:
        if decision.artifact and decision.action == "reuse":
            line = "; ".join([f"{decision.stage:<{width}} reuse    {decision.artifact.ref}", *decision.idle])
        elif decision.action == "depends":
            line = f"{decision.stage:<{width}} depends  {decision.why}"
        else:
            line = f"{decision.stage:<{width}} run      because {decision.why}"
        print_line(console, complete(line))


def plan_data(decisions: "Sequence[Decision]") -> list[dict[str, Any]]:
    """Return a plan as plain data."""
    return [
        {
            "stage": d.stage,
            "action": d.action,
            "ref": d.artifact.ref if d.artifact else None,
            "reasons": d.reasons,
            "idle": d.idle,
            "cache_key": d.key,
        }
        for d in decisions
    ]


def print_summary(console: Console, outcomes: "Sequence[Outcome]") -> None:
    """Print what a run made or reused, and where it lies."""
    console.print()
    rows = [
        (
            outcome.stage,
            outcome.artifact.ref,
            "reused" if outcome.reused else "run",
            "" if outcome.reused else format_duration(outcome.duration_s),
            _figures(outcome.artifact),
        )
        for outcome in outcomes
    ]
    print_figures_table(console, ("stage", "artifact", "", "time", "figures"), rows)
    console.print()
    for outcome in outcomes:
        print_line(console, f"{outcome.artifact.ref}: {outcome.artifact.path}")
    if unread := list_unread(outcomes):
        line = f"reused with sizes checked, not each byte: {', '.join(unread)}; `rlhf verify` reads them all"
        print_line(console, complete(line))
    last = outcomes[-1].artifact.ref
    print_line(console, f"look at it: {pasted(f'rlhf show {last}')}   check its bytes: {pasted(f'rlhf verify {last}')}")


def list_unread(outcomes: "Sequence[Outcome]") -> list[str]:
    """List the reused artifacts of which a run did not read every byte, as it does before a stage starts from them."""
    parents = {parent.ref for outcome in outcomes if not outcome.reused for parent in outcome.artifact.manifest.parents}
    return [outcome.artifact.ref for outcome in outcomes if outcome.reused and outcome.artifact.ref not in parents]


def list_data(store: Store, kind: str | None) -> list[dict[str, Any]]:
    """Return all artifacts as plain data, damaged ones marked."""
    rows: list[dict[str, Any]] = []
    names = {known: store.aliases(known) for known in ([kind] if kind else ARTIFACT_KINDS)}
    for ref, found in store.survey(kind):
        if isinstance(found, StoreError):
            rows.append({"ref": ref, "damaged": found.message})
            continue
        named = [name for name, alias in names.get(found.kind, {}).items() if alias.ref == ref]
        rows.append(_list_row(ref, found.manifest, named, str(found.path)) | {"withdrawn": store.find_withdrawal(found)})
    with suppress(StoreError):  # of a ledger that was changed by hand, each row tells
        lost = {ref: entry for ref, entry in store.find_lost().items() if kind in (None, ref.partition("@")[0])}
        rows += [{"ref": ref, "damaged": f"it {entry}, and is gone without `rlhf rm`"} for ref, entry in lost.items()]
    return rows


def list_remote_data(remote: "Remote") -> list[dict[str, Any]]:
    """Return all artifacts of a store elsewhere as plain data; those without an intact manifest marked, as a push may have been stopped."""

    from pipeline.remotes.transfers import list_refs

    rows: list[dict[str, Any]] = []
    for ref in list_refs(remote):
        try:
            rows.append(_list_row(str(ref), remote.read_manifest(ref)[0], [], remote.address(ref)))
        except StoreError as error:
            if error.exit_code == EXIT_RESOURCE:
                raise
            incomplete = "no manifest: a push goes on, or was stopped" if error.exit_code == EXIT_MISSING else error.message
            rows.append({"ref": str(ref), "damaged": incomplete})
    return rows


def _list_row(ref: str, manifest: Manifest, aliases: list[str], path: str) -> dict[str, Any]:
    return {
        "ref": ref,
        "content_id": manifest.content_id,
        "created_utc": manifest.created_utc,
        "size": sum(entry.size for entry in manifest.files),
        "parents": [parent.ref for parent in manifest.parents],
        "aliases": aliases,
        "metrics": manifest.metrics,
        "intervals": {name: interval.model_dump() for name, interval in manifest.intervals.items()},
        "path": path,
    }


def print_list(console: Console, rows: Sequence[dict[str, Any]], root: Path | str, kind: str | None = None) -> None:
    """Print artifacts, one a line; where there are none, of which kind there are none."""
    if not rows:
        none = "no artifacts" if kind is None else f"no artifacts of kind {kind}"
        make = "`rlhf run` makes some" if kind is None else "`rlhf ls` lists all"
        print_line(console, complete(f"{none} in {root}; {make}"))
        return
    cells: list[tuple[str, ...]] = []
    for row in rows:
        if "damaged" in row:
            cells.append((row["ref"], "damaged", "", "", "", "", row["damaged"]))
            continue
        names = ", ".join([*row["aliases"], *(["withdrawn"] if row.get("withdrawn") else [])])
        cells.append(
            (
                row["ref"],
                row["content_id"][:_ID_CHARS],
                row["created_utc"][:16].replace("T", " "),
                format_bytes(row["size"]),
                ", ".join(row["parents"]),
                names,
                _headline_of(row),
            )
        )
    columns = ("artifact", "content", "made (UTC)", "size", "from", "alias", "figures")
    if not any(row[-2] for row in cells):  # few artifacts have a name, and a terminal is narrow
        columns, *cells = [(*row[:-2], row[-1]) for row in (columns, *cells)]
    print_figures_table(console, columns, cells)


def _headline_of(row: Mapping[str, Any]) -> str:
    labels = labels_of(row["ref"].partition("@")[0])
    return headline(labels, row["metrics"], read_intervals({key: row["intervals"][key] for key in labels if key in row["intervals"]}))


def findings_data(inputs: "Inputs", counts: "Counts", recipe: "Recipe") -> dict[str, Any]:
    """Return what was found in the data, by kind."""
    from pipeline.foreseen import foresee

    warnings = foresee(recipe, counts)
    return {
        kind: {
            "sources": list(read.told),
            "counts": read.findings.counts | _token_counts(kind, counts.get(kind, {})),
            "warnings": [*read.findings.warnings, *warnings.get(kind, [])],
            "skipped": [str(bad) for bad in read.skipped],
            "fingerprints": read.fingerprints,
        }
        for kind, read in inputs.readings.items()
    }


def _token_counts(kind: "RecordKind", splits: dict[str, dict[str, int]]) -> dict[str, int]:
    """Say how many records each side of the split has, and what of both is cut and not used."""
    from pipeline.tokens import add_splits

    total = add_splits(splits)
    sizes = {split: counts[kind] for split, counts in splits.items()}
    cut = {name: total[name] for name in ("prompts_cut", "responses_dropped") if name in total}
    return sizes | cut | ({f"{kind}_left_out": total[kind] - total[f"{kind}_used"]} if f"{kind}_used" in total else {})


_SPLITS = {"train": "train", "eval": "held out"}
_OF_COMPARISONS = ("contradictions", "comparisons_without_pair", "empty_answers")


def print_findings(console: Console, data: dict[str, Any]) -> None:
    """Print how each source was read, counts and warnings, by kind."""
    for kind, found in data.items():
        console.print(Text(kind, style="bold"))
        for line in found["sources"]:
            print_line(console, f"  {line}")
        counts = found["counts"]
        shown = [*_SPLITS, *(name for name in counts if name not in _SPLITS and counts[name])]
        for name in (name for name in shown if name in counts):
            console.print(Text(f"  {_SPLITS.get(name, name.replace('_', ' ')):<28} {counts[name]:>9,}"))
        none = [name for name in counts if name not in shown and (kind == "comparisons" or name not in _OF_COMPARISONS)]
        if none:
            print_indented(console, Text(f"no {', '.join(name.replace('_', ' ') for name in none)}"), "  ")
        for bad in found["skipped"]:
            print_line(console, f"  skipped: {bad}", "yellow")
        for warning in found["warnings"]:
            print_line(console, f"  warning: {warning}", "yellow")


def read_intervals(data: Mapping[str, Mapping[str, Any]]) -> dict[str, Interval]:
    """Read intervals from plain data."""
    return {name: Interval.model_validate(interval) for name, interval in data.items()}


def _figures(artifact: Artifact) -> str:
    return headline(labels_of(artifact.kind), artifact.manifest.metrics, artifact.manifest.intervals)
