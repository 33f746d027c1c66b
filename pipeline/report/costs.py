"""An estimate of what a recipe needs -> tables, the arithmetic line by line, and plain data."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from pipeline.cost.machines import SPREAD_MEASURED, SPREAD_TABLE
from pipeline.cost.memory import PhaseMemory
from pipeline.estimates.estimate import Estimate, StageEstimate
from pipeline.estimates.fits import Fit
from pipeline.estimates.scale import Scaled, list_limits
from pipeline.pasted import pasted
from pipeline.report.tables import print_line, print_table
from pipeline.text import count, format_bytes, format_duration


def print_estimate(console: Console, estimate: Estimate, *, explain: bool) -> None:
    """Print what the stages need: a table, what it does not know, and with `explain` each step of the arithmetic."""
    machine = estimate.machine
    many = f"{estimate.processes} x " if machine.gpu else f"{estimate.processes} process{'es' * (estimate.processes > 1)} on "
    name = machine.name if machine.gpu else "this machine's CPU"
    print_line(console, f"{many}{name}, {format_bytes(int(machine.memory))}")
    columns = ["stage", "memory", "verdict", "peak in", "disk", "time", *(["money"] if machine.price else [])]
    print_table(console, columns, [_row(stage, estimate) for stage in estimate.stages])
    if len(estimate.stages) > 1 and any(stage.parts for stage in estimate.stages):
        money = f", {_price(estimate, estimate.gpu_seconds)}" if machine.price else ""
        energy = f", {machine.gpu.watts * estimate.gpu_seconds / 3.6e6:,.1f} kWh at full load" if machine.gpu else ""
        print_line(console, f"all: {format_duration(estimate.seconds)}{money}{energy}")
    for note in [*estimate.notes, *tell_spread(estimate)]:
        print_line(console, f"note: {note}")
    if explain:
        for line in explain_estimate(estimate):
            print_line(console, line)


def print_fits(console: Console, stage: str, fits: list[Fit], estimate: Estimate) -> None:
    """Print with what a stage would fit, the cheapest first, as the options to paste, and behind which commands."""
    if not fits:
        print_line(console, f"{stage} does not fit with any change that was tried; take more or larger GPUs, or a smaller model")
        return
    # Options alone mean neither the recipe nor the store of the command that said so.
    behind = f"behind the same command, or behind `{pasted('rlhf run')}`"
    print_line(console, f"{stage} does not fit; it does with one of these {behind}:")
    for fit in fits:
        made, price = fit.estimate, estimate.machine.price
        known = [f"{format_duration(made.seconds)}"] if made.parts else []
        paid = [f"from {_write_price(price[0] * fit.gpu_seconds / 3600)}"] if price and made.parts else []
        figures = ", ".join([format_bytes(int(made.verdict.need)), made.verdict.word, *known, *paid])
        console.print(Text(f"{figures}:\n  {fit.words}"), soft_wrap=True)  # a line of a terminal, to be copied whole


def _row(stage: StageEstimate, estimate: Estimate) -> list[str]:
    time = format_duration(stage.seconds) if stage.parts else "-"
    row = [
        stage.stage,
        format_bytes(int(stage.verdict.need)),
        stage.verdict.word,
        stage.peak.name,  # of what it is made, says --explain
        format_bytes(stage.disk),
        time,
    ]
    return [*row, *([_price(estimate, stage.seconds * stage.gpus) if stage.parts else "-"] if estimate.machine.price else [])]


def tell_spread(estimate: Estimate) -> Iterator[str]:
    """Say how sure times are, and by what they were corrected."""
    raw = [stage.stage for stage in estimate.stages if stage.parts and stage.calibration is None]
    for stage in estimate.stages:
        if (found := stage.calibration) is not None:
            runs = count(found.runs, "run")
            sure = f"within a factor of {found.spread:.2f}"
            yield f"{stage.stage}: {found.factor:.2f} x what was counted, as {runs} on this hardware took; {sure}"
    if raw:
        which = f"times of {', '.join(raw)} are" if len(raw) < len(estimate.stages) else "times are"
        if estimate.machine.gpu is None:
            spread = f"all within a factor of {SPREAD_MEASURED:g}, one stage within {SPREAD_TABLE:g}"
            yield f"{which} by what this machine takes now: {spread}"
        else:
            yield f"{which} by the data sheet and a stated share of it: within a factor of {SPREAD_TABLE:g}"


def print_scale(console: Console, scaled: Sequence[Scaled], estimate: Estimate, left_out: Sequence[str] = ()) -> None:
    """Print what more GPUs bring, what holds them up, and in `left_out` which numbers of them are not there."""
    rows: list[list[str]] = []
    for each in scaled:
        stages = [*each.stages]
        worst = next((word for word in ("does not fit", "tight") if any(stage.verdict.word == word for stage in stages)), "fits")
        faster = scaled[0].seconds / each.seconds if each.seconds else 1.0
        money = [_price(estimate, each.gpu_seconds)] if estimate.machine.price else []
        shares = [f"{each.share(name):.0%}" for name in ("sending", "rollout")]
        rows.append([f"{each.gpus:,}", format_duration(each.seconds), f"{faster:.1f} x", *money, *shares, worst])
    print_line(console, "on more GPUs, eight to a machine:")
    heads = ["GPUs", "time", "faster", *(["money"] if estimate.machine.price else []), "sending", "rollout", "verdict"]
    if rows:
        print_table(console, heads, rows)
    for line in [*left_out, *list_limits(scaled)]:
        print_line(console, line)


def _price(estimate: Estimate, gpu_seconds: float) -> str:
    assert estimate.machine.price is not None
    least, most = (rate * gpu_seconds / 3600 for rate in estimate.machine.price)
    written = _write_price(least), _write_price(most)
    return written[0] if written[0] == written[1] else " to ".join(written)


def _write_price(dollars: float) -> str:
    return f"${dollars:,.2f}" if dollars < 10 else f"${dollars:,.0f}"


def explain_estimate(estimate: Estimate) -> Iterator[str]:
    """Say each step of the arithmetic."""
    for kind, lengths in estimate.lengths.items():
        known = "read" if lengths.known else "the limits"
        count = "unknown" if lengths.records is None else f"{lengths.records:,}"
        yield f"{kind}: {count} records, prompt {lengths.prompt:.1f} tokens, {lengths.answers:.1f} x {lengths.response:.1f} ({known})"
    for stage in estimate.stages:
        need = stage.need
        learning = " + ".join(f"{count:,}" for count in need.learning) or "0"
        yield f"{stage.stage}: {need.parameters:,} weights in {need.layers} layers, {learning} learn; {need.held:,} B held"
        for phase in stage.phases:
            yield f"  {phase.name}: {_explain_phase(phase)}"
        yield f"  with allocator, libraries and context {stage.verdict.need:,.0f} B of {stage.verdict.room:,.0f} B: {stage.verdict.word}"
        yield f"  disk: {_explain_disk(stage)}"
        for part in stage.parts:
            yield f"  {part.name}: {part.seconds:,.1f} s = {part.how}"
        if stage.calibration is not None:
            counted = sum(part.seconds for part in stage.parts)
            yield f"  as past runs took: {counted:,.1f} s counted x {stage.factor:.3g} = {stage.seconds:,.1f} s"


def _explain_disk(stage: StageEstimate) -> str:
    need = stage.need
    if not stage.disk:
        return "no model is written"
    held = f", and {stage.held:,} B of models that are kept" if stage.held else ""
    return f"at most 3 checkpoints of {need.checkpoint:,} B at once, or 2 and an artifact of {need.output:,} B{held}: {stage.disk:,} B"


def _explain_phase(phase: PhaseMemory) -> str:
    device = " + ".join(f"{name} {size:,}" for name, size in phase.device.items() if size) or "0"
    host = f"; in the host's memory {' + '.join(f'{name} {size:,}' for name, size in phase.host.items())} B" if phase.host else ""
    return f"{device} = {phase.total:,} B{host}"


def scale_data(scaled: Sequence[Scaled]) -> list[dict[str, Any]]:
    """Return what more GPUs bring as plain data."""
    return [
        {
            "gpus": each.gpus,
            "seconds": each.seconds,
            "gpu_seconds": each.gpu_seconds,
            "sending": each.share("sending"),
            "rollout": each.share("rollout"),
            "working": each.working,
        }
        for each in scaled
    ]


def estimate_data(estimate: Estimate, fits: dict[str, list[Fit]]) -> dict[str, Any]:
    """Return an estimate as plain data, and with what its stages would fit; sizes in bytes, times in seconds."""
    machine = estimate.machine
    return {
        "machine": machine.name,
        "processes": estimate.processes,
        "memory": machine.memory,
        "price_per_gpu_hour": machine.price,
        "notes": [*estimate.notes, *tell_spread(estimate)],
        "gpu_seconds": estimate.gpu_seconds,
        "stages": [
            {
                "stage": stage.stage,
                "verdict": stage.verdict.word,
                "need": round(stage.verdict.need),
                "fits_with": [_fit_data(fit) for fit in fits.get(stage.stage, [])],
                "weights": stage.need.parameters,
                "learning": stage.need.learning,
                "phases": {phase.name: {"device": phase.device, "host": phase.host} for phase in stage.phases},
                "disk": {"checkpoint": stage.need.checkpoint, "artifact": stage.need.output, "most": stage.disk},
                "gpus": stage.gpus,
                "seconds": {part.name: part.seconds for part in stage.parts},
                "operations": {part.name: part.operations for part in stage.parts if part.operations},
                "calibration": None if stage.calibration is None else dataclasses.asdict(stage.calibration),
            }
            for stage in estimate.stages
        ],
    }


def _fit_data(fit: Fit) -> dict[str, Any]:
    verdict = fit.estimate.verdict
    return {"set": fit.change, "need": round(verdict.need), "verdict": verdict.word, "gpu_seconds": fit.gpu_seconds}
