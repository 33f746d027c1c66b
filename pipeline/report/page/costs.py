"""Section of the report: what each stage was planned to cost, and what it took."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.report.page.blocks import Section, Table
from pipeline.report.spent import HEAD, compare_cost, write_rows
from pipeline.store.artifact import Artifact


def tell_costs(line: Sequence[Artifact], store_root: Path) -> Section | None:
    """Show what stages took, beside what was said before; None where nothing is known of any."""
    cells: list[tuple[str, ...]] = []
    texts: list[str] = []
    unplanned: list[str] = []
    for artifact in line:
        cost = compare_cost(store_root, artifact)
        if cost is None:
            continue
        cells += [(artifact.ref, *row) for row in write_rows(cost["rows"])]
        if cost["planned_utc"] is None:
            unplanned.append(artifact.ref)
        else:
            texts += [f"{artifact.ref}: {note}." for note in cost["notes"]]
    if not cells:
        return None
    if unplanned:
        texts.append(f"Of {', '.join(unplanned)} nothing was planned; what `rlhf plan --cost` says before a run is compared here.")
    table = Table("Time and memory of each stage, as planned and as it was", ("stage", *HEAD), cells)
    return Section("cost", "What it cost", texts=texts, tables=[table])
