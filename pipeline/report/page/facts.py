"""Manifests and notes -> what the data lost on its way, which settings differ from the defaults, with what and how long it was made."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from data.secrets import redact, redact_values
from pipeline.inputs.records import Reading, recall_note
from pipeline.report.metrics import Curves
from pipeline.report.page.blocks import Section, Table
from pipeline.report.spent import HEAD, compare_cost, write_rows
from pipeline.store.artifact import Artifact
from pipeline.store.compare import flatten
from pipeline.store.parts import NOTES_DIR
from pipeline.text import count, format_bytes, format_duration
from stages.blocks import Closed, HardwareSettings, TokenSettings
from stages.result import StageWarning
from stages.spec import STAGES

_HELD_OUT = "held_out_"
_MUCH_LOST = 0.05
_LOST = ("prompts_cut", "responses_dropped", "comparisons_without_pair")
_KINDS = ("demonstrations", "comparisons", "prompts", "texts")
_LINES_SHOWN = 200
_LONGEST = 200


def summarize_data(line: Sequence[Artifact], store_root: Path) -> Section:
    """Say of each stage how many records it had, and what was cut, dropped, doubled or contradictory."""
    counted = [row for artifact in line if artifact.kind in STAGES for row in _count_rows(artifact)]
    readings = _find_readings(line, store_root)
    checked = [((kind,), reading.findings.counts) for kind, reading in readings.items()]
    tables = [_pivot("Records, and what of them was cut, dropped or left out", ("", "records"), counted)]
    tables.append(_pivot("What the checks found in the sources", ("records",), checked))
    tables, more = [table for table in tables if table is not None], list[Table]()
    for title, lines in (
        ("How the sources were read", [(kind, text) for kind, reading in readings.items() for text in reading.told]),
        ("Bad lines that were skipped", [(kind, str(bad)) for kind, reading in readings.items() for bad in reading.skipped]),
    ):
        if lines:
            shown = f"{title}, the first {_LINES_SHOWN} of {len(lines):,}" if len(lines) > _LINES_SHOWN else title
            cells = redact_values([list(pair) for pair in lines[:_LINES_SHOWN]])
            more.append(Table(shown, ("records", ""), cells, folded=True))
    warnings = list(_tell_losses(line))
    warnings += redact_values([f"{kind}: {text}" for kind, reading in readings.items() for text in reading.findings.warnings])
    texts = [] if tables else ["No artifact says how many records it had."]
    return Section("data", "Data", texts=texts, warnings=warnings, tables=[*tables, *more])


def _pivot(caption: str, head: Sequence[str], rows: Sequence[tuple[tuple[str, ...], Mapping[str, int]]]) -> Table | None:
    """Write counts with a column for each name; None where there are none. A count that nothing has is left out."""
    names = list(dict.fromkeys(name for _, counts in rows for name in counts))
    if not names:
        return None
    cells = [(*labels, *("–" if name not in counts else f"{counts[name]:,}" for name in names)) for labels, counts in rows]
    return Table(caption, (*head, *(_shorten(name.replace("_", " ")) for name in names)), cells)


def list_warnings(warnings: Iterable[StageWarning]) -> list[str]:
    """Write what a stage warned of while it ran, with the steps at which it held."""
    told: list[str] = []
    for warning in warnings:
        first, last = warning.first_step, warning.last_step
        steps = "" if first is None else f"at step {first}: " if last in (None, first) else f"from step {first} to {last}: "
        told.append(redact(f"{steps}{warning.message}"))
    return told


def list_notes(told: Sequence[str]) -> Table | None:
    """Write what else a stage told while it ran, folded away."""
    notes = [(str(place), redact(note)) for place, note in enumerate(told, start=1)]
    caption = "What the stage told while it ran"
    caption += f", the first {_LINES_SHOWN} of {len(notes):,}" if len(notes) > _LINES_SHOWN else ""
    return Table(caption, ("", "note"), notes[:_LINES_SHOWN], folded=True) if notes else None


def list_settings(line: Sequence[Artifact]) -> Section:
    """List the settings of each stage that differ from the defaults."""
    of: dict[tuple[str, str, str], list[str]] = {}
    for artifact in line:
        for row in _differing(artifact):
            of.setdefault(row, []).append(artifact.ref)
    cells = [(*row, ", ".join(refs)) for row, refs in of.items()]
    shown = [Table("Setting, its value, and the default", ("setting", "value", "default", "of"), cells)] if cells else []
    return Section("settings", "Settings that differ from the defaults", texts=[] if cells else ["None does."], tables=shown)


def tell_making(line: Sequence[Artifact], curves: Mapping[str, Curves]) -> Section:
    """Say when, how long, on what and with which versions each artifact was made."""
    head = ("", "made (UTC)", "time", "tokens", "peak memory", "device", "precision", "processes", "size", "code", "content id")
    cells = [
        (
            artifact.ref,
            artifact.manifest.created_utc[:16].replace("T", " "),
            "–" if artifact.manifest.duration_s is None else format_duration(artifact.manifest.duration_s),
            _count_tokens(artifact, curves.get(artifact.ref)),
            _peak_memory(artifact),
            artifact.manifest.device or "–",
            artifact.manifest.precision or "–",
            str(artifact.manifest.world_size),
            format_bytes(sum(entry.size for entry in artifact.manifest.files)),
            f"{(artifact.manifest.code.commit or 'no git checkout')[:15]}{' with changes' if artifact.manifest.code.dirty else ''}",
            artifact.content_id[:12],
        )
        for artifact in line
    ]
    tables = [Table("How each artifact was made", head, cells)]
    names = sorted({name for artifact in line for name in artifact.manifest.packages})
    caption = "Versions"
    rows = [(name, *(artifact.manifest.packages.get(name, "–") for artifact in line)) for name in names]
    versions = Table(caption, ("package", *(artifact.ref for artifact in line)), rows, folded=True)
    return Section("making", "Versions, times, tokens, memory", tables=[*tables, versions] if names else tables)


def _count_rows(artifact: Artifact) -> Iterator[tuple[tuple[str, str], dict[str, int]]]:
    """Yield the counts of a stage, training and held-out; what it counts of its own kind is called records."""
    split: dict[str, dict[str, int]] = {"training": {}, "held-out": {}}
    for name, number in artifact.manifest.counts.items():
        of, plain = ("held-out", name.removeprefix(_HELD_OUT)) if name.startswith(_HELD_OUT) else ("training", name)
        kind = next((kind for kind in _KINDS if plain.startswith(kind) and not plain.endswith("without_pair")), "")
        split[of][f"{'read' if plain == kind else plain.removeprefix(f'{kind}_')}" if kind else plain] = number
    for of, counts in split.items():
        if counts:
            yield (artifact.ref, of), counts


def _tell_losses(line: Iterable[Artifact]) -> Iterator[str]:
    """Warn where more than 5 % of the records of a stage were cut or dropped."""
    for artifact in line:
        counts = artifact.manifest.counts
        total = max((counts.get(kind, 0) for kind in _KINDS), default=0)
        for name in _LOST:
            if total and counts.get(name, 0) > _MUCH_LOST * total:
                share = 100 * counts[name] / total
                what = f"{name.replace('_', ' ')}: {counts[name]:,} of {count(total, 'record')} ({share:.0f} %)"
                yield f"{artifact.ref}: {what}; raise tokens.max_prompt_tokens or max_response_tokens, or look at the data"


def _find_readings(line: Iterable[Artifact], store_root: Path) -> dict[str, Reading]:
    """Find the notes of the sources that the artifacts were made from, by their fingerprints."""
    wanted: dict[str, dict[str, str]] = {}
    for artifact in line:
        for name, fingerprint in artifact.manifest.data.items():
            kind, _, split = name.partition(".")
            wanted.setdefault(kind, {})[split] = fingerprint
    readings: dict[str, Reading] = {}
    for kind, fingerprints in wanted.items():
        for note in islice((store_root / NOTES_DIR).glob(f"{kind}-*.json"), 1000):
            noted = recall_note(note)
            if noted is not None and noted[1].fingerprints == fingerprints:
                readings[kind] = noted[1]
                break
    return readings


def _differing(artifact: Artifact) -> Iterator[tuple[str, str, str]]:
    config = artifact.manifest.config
    blocks: list[tuple[str, type[Closed]]] = [("tokens", TokenSettings), ("hardware", HardwareSettings)]
    blocks += [(name, row.settings) for name, row in STAGES.items()]
    for name, settings in blocks:
        block = config.get(name)
        if not isinstance(block, dict):
            continue
        try:
            defaults = dict(flatten(settings.model_validate({}).model_dump(mode="json")))
        except ValidationError:
            continue
        given: dict[str, Any] = dict(flatten(block))  # pyright: ignore[reportUnknownArgumentType]
        for key, value in given.items():
            if value != defaults.get(key):
                yield f"{name}.{key}", _write_value(value), _write_value(defaults.get(key))


def _write_value(value: Any) -> str:
    return _shorten("none" if value is None else value if isinstance(value, str) else json.dumps(value))


def _shorten(text: str) -> str:
    """Cut what no setting or count of ours is as long as; the manifest has it whole."""
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}… ({len(text):,} characters)"


def _count_tokens(artifact: Artifact, curves: Curves | None) -> str:
    """Count the tokens of a stage: told at its end, or those of every iteration."""
    if (total := artifact.manifest.metrics.get("total_tokens")) is not None:
        return f"{total:,.0f}"
    points = curves.points.get("tokens", []) if curves else []
    return f"{sum(value for _, value in points):,.0f}" if points else "not recorded"


def _peak_memory(artifact: Artifact) -> str:
    peak = artifact.manifest.metrics.get("peak_memory_bytes")
    return "not recorded" if peak is None else format_bytes(int(peak))


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
