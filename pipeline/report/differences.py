"""Two artifacts -> what differs between them and their ancestors, and what that did to their held-out figures."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.text import Text

from pipeline.errors import StoreError
from pipeline.report.headline import labels_of, write_figure
from pipeline.report.tables import print_indented, print_line, print_table, read_intervals
from pipeline.store.artifact import Artifact
from pipeline.store.compare import Difference, Part, compare_lines
from pipeline.store.manifest import Manifest
from pipeline.store.store import Store
from pipeline.text import clean
from stages.lines import read_figures
from stages.result import Interval

HELD_OUT = "eval/"
# What a change is of, in a word.
PARTS: dict[Part, str] = {
    "config": "setting",
    "data": "data",
    "parent": "parent",
    "code": "code",
    "package": "package",
    "machine": "machine",
}


def diff_data(store: Store, old: Artifact, new: Artifact) -> dict[str, Any]:
    """Return what differs as plain data; `differences` has an entry for each kind among them and their ancestors, oldest first."""
    problems: list[str] = []
    lines = [_read_line(store, artifact, problems) for artifact in (old, new)]
    manifests = {f"{manifest.kind}@v{manifest.version}": manifest for line in lines for manifest in line}
    differences = compare_lines(*lines)
    if old.kind != new.kind:
        problems.append(f"{old.ref} and {new.ref} are of two kinds: compared is what both have; their held-out prompts may differ")
    return {
        "old": old.ref,
        "new": new.ref,
        "problems": problems,
        "differences": [_write_difference(difference, manifests) for difference in differences],
    }


def _read_line(store: Store, artifact: Artifact, problems: list[str]) -> list[Manifest]:
    """Read an artifact and its ancestors; itself alone where one of them is missing or damaged, which is told."""
    try:
        return [artifact.manifest, *(parent.manifest for parent in store.lineage(artifact.ref))]
    except StoreError as error:
        problems.append(f"the ancestors of {artifact.ref} are not compared: {error.message}")
        return [artifact.manifest]


def _write_difference(difference: Difference, manifests: dict[str, Manifest]) -> dict[str, Any]:
    intervals = [manifests[ref].intervals if ref in manifests else {} for ref in (difference.old, difference.new)]
    return {
        "kind": difference.kind,
        "old": difference.old,
        "new": difference.new,
        "same_content": difference.same_content,
        "changes": [{**asdict(change), "words": change.words} for change in difference.changes],
        "figures": [
            {
                **asdict(figure),
                "difference": figure.new - figure.old if figure.new is not None and figure.old is not None else None,
                "old_interval": _dump(intervals[0].get(figure.name)),
                "new_interval": _dump(intervals[1].get(figure.name)),
            }
            for figure in difference.figures
            if figure.name.startswith(HELD_OUT)
        ],
        "counts": [asdict(count) for count in difference.counts],
    }


def print_diff(console: Console, data: dict[str, Any]) -> None:
    """Print what differs: for each kind what changed, and of the artifacts themselves what that did to their figures."""
    for problem in data["problems"]:
        print_indented(console, Text(clean(problem), style="yellow"), "")
    differences = data["differences"]
    same = [found["kind"] for found in differences[:-1] if found["same_content"] and not found["changes"]]
    for place, found in enumerate(differences):
        if found["kind"] not in same or place == len(differences) - 1:
            _print_changes(console, found)
    if same:
        print_line(console, f"the same: {', '.join(same)}")
        console.print()
    _print_figures(console, differences[-1])


def _print_changes(console: Console, found: dict[str, Any]) -> None:
    name = found["kind"]
    if found["old"] is None or found["new"] is None:
        only = f"{name}: {found['new'] or found['old']} in {'the second' if found['old'] is None else 'the first'} alone"
        print_line(console, only, "bold")
        return
    words = f"{found['old']} -> {found['new']}" if found["old"] != found["new"] else found["old"]
    print_line(console, f"{words}{', the same weights' if found['same_content'] else ''}", "bold")
    for change in found["changes"]:
        print_line(console, f"  {PARTS[change['part']]:<8} {change['words']}")
    for count in found["counts"]:
        print_line(console, f"  {'count':<8} {count['name']}: {count['old']} -> {count['new']}")
    if not found["changes"] and not found["counts"]:
        same_kind = found["old"].partition("@")[0] == found["new"].partition("@")[0]
        console.print(Text(f"  {'made from and with the same' if same_kind else 'what both have is the same'}"))
    console.print()


def _print_figures(console: Console, found: dict[str, Any]) -> None:
    rows: list[Sequence[str]] = []
    intervals = [
        read_intervals({figure["name"]: figure[side] for figure in found["figures"] if figure[side]})
        for side in ("old_interval", "new_interval")
    ]
    first = list(labels_of(found["kind"]))
    figures = {figure["name"]: figure for figure in found["figures"] if repr(figure["old"]) != repr(figure["new"])}
    others = sorted((name for name in figures if name not in first), key=lambda name: name.startswith("eval/start/"))
    for name in [*(name for name in first if name in figures), *others]:
        figure = figures[name]
        before, after = (interval.get(name) for interval in intervals)
        apart = "apart" if before and after and (before.high < after.low or after.high < before.low) else ""
        values = read_figures({side: figure[side] for side in ("old", "new", "difference")})
        written = [write_figure(values[side], known) if side in values else "-" for side, known in (("old", before), ("new", after))]
        change = f"{values['difference']:+.3g}" if "difference" in values else ""
        rows.append((name.removeprefix(HELD_OUT), *written, change, apart))
    if not rows:
        console.print(Text("held-out figures: the same" if found["figures"] else "held-out figures: none"))
        return
    print_table(console, ("held-out figure", str(found["old"]), str(found["new"]), "change", ""), rows)
    if any(row[-1] for row in rows):
        print_line(console, "apart: the 95 % intervals of the two do not overlap")
    elif not any(intervals):
        print_line(console, "no intervals are known of these: a small change may be chance")


def _dump(interval: Interval | None) -> dict[str, Any] | None:
    return interval.model_dump() if interval else None
