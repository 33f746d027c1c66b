"""What `rlhf plan --cost` said of a stage beside what it took: time by part, memory. For a terminal, and as plain data."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from pipeline.estimates.kept import recall_estimate
from pipeline.estimates.taken import find_stage, ran_here, read_recipe, read_taken, sum_together
from pipeline.pasted import complete
from pipeline.report.tables import print_line, print_table
from pipeline.store.artifact import Artifact
from pipeline.text import format_bytes, format_duration

HEAD = ("", "planned", "took", "took / planned")


def compare_cost(root: Path, artifact: Artifact) -> dict[str, Any] | None:
    """Compare what was said of an artifact's stage with what it took; None where no stage of this store made it.

    Args:
        root: Of the store.
        artifact: That it left.

    Returns:
        `rows`: name, unit (s or B), planned and took, each None where it is not known; and `notes`, a line each.
    """
    taken, stage = read_taken(root, artifact), find_stage(artifact.kind)
    if taken is None or stage is None:
        return None
    recipe = read_recipe(artifact)
    kept = recall_estimate(root, stage, recipe, partial(ran_here, root, artifact.manifest)) if recipe is not None else None
    said = {part: seconds * kept.factor for part, seconds in sum_together(kept.seconds).items()} if kept else {}
    names = [*said, *(part for part in taken.parts if part not in said)]
    rows = [{"name": name, "unit": "s", "planned": said.get(name), "took": taken.parts.get(name)} for name in names]
    rows.append({"name": "all", "unit": "s", "planned": sum(said.values()) or None, "took": taken.seconds})
    rows.append({"name": "peak memory", "unit": "B", "planned": kept.memory if kept else None, "took": taken.memory})
    notes: list[str] = []
    if kept is None:
        notes.append("not planned: `rlhf plan --cost` before a run is kept, and compared here")
    elif not ran_here(root, artifact.manifest, kept.machine):
        cpu = kept.machine == "cpu" and (artifact.manifest.device or "").startswith("cpu")
        notes.append(f"planned for {kept.machine}, ran on {artifact.manifest.device}{' of another host, as far as is known' * cpu}")
    if not taken.whole:
        notes.append("it was interrupted and went on: what it took is of the last attempt alone")
    return {"rows": rows, "notes": notes, "planned_utc": kept.made_utc if kept else None}


def write_rows(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str, str]]:
    """Write the rows of a comparison in words; what is known of neither is left out."""

    def write(value: float | None, unit: str) -> str:
        return "–" if value is None else format_duration(value) if unit == "s" else format_bytes(int(value))

    written: list[tuple[str, str, str, str]] = []
    for row in rows:
        planned, took, unit = row["planned"], row["took"], row["unit"]
        share = f"{took / planned:.2f}" if planned and took is not None else "–"
        if planned is not None or took is not None:
            written.append((row["name"], write(planned, unit), write(took, unit), share))
    return written


def print_cost(console: Console, cost: Mapping[str, Any] | None) -> None:
    """Print a comparison, where something was planned."""
    if cost is None or cost["planned_utc"] is None:
        return
    console.print()
    print_table(console, list(HEAD), [list(row) for row in write_rows(cost["rows"])])
    for note in cost["notes"]:
        print_line(console, complete(note))
