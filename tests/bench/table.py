"""Cases -> Markdown tables and JSON. Medians, with the lowest and highest of all turns beside them."""

import json
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from tests.bench.floor import PHASES, compute_floor_s, list_products
from tests.bench.sections import Case, describe_work

Row = list[str]


def write_report(path: Path, machine: dict[str, Any], sections: dict[str, list[Case]]) -> None:
    """Write `path`.md for people and `path`.json with every single figure.

    Args:
        path: without its ending.
        machine: what `describe_machine` returned.
        sections: name -> cases; those measured so far.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").write_text(json.dumps({"machine": machine, "sections": sections}, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(render(machine, sections), encoding="utf-8")


def describe_machine(threads: int, repeats: int) -> dict[str, Any]:
    """Describe where and how is measured: CPU, cores, threads, Python, date (UTC) and load before the start."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "repeats": repeats,
        "python": platform.python_version(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "load_before": round(os.getloadavg()[0], 2),
    }


def render(machine: dict[str, Any], sections: dict[str, list[Case]]) -> str:
    """Render all sections as one Markdown text."""
    facts = next((case["facts"] for cases in sections.values() for case in cases), {})
    versions = ", ".join(f"{name} {facts[name]}" for name in ("torch", "transformers") if name in facts)
    head = (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads a process (RM, scale: 1), {versions}, "
        f"{machine['date']}. Median (lowest–highest) of {machine['repeats']} turns taken in alternation. Wall: seconds of the clock; CPU: "
        f"seconds of all threads. Load average before the start: {machine['load_before']}."
    )
    titles = {
        "ppo": ("One PPO update: TRL 1.12.0 and ours", _render_ppo),
        "rm": ("One optimizer step of the reward model, prompt 256 and answers 128 tokens: TRL on all pairs and ours", _render_steps),
        "sft": ("One epoch of SFT on answers of skewed lengths: padded by TRL, unpadded, and packed into rows", _render_rates),
        "rollout": ("Sampling: transformers' generate and ours", _render_rates),
        "scale": ("One optimizer step (PPO: one update) by one process and by two", _render_steps),
        "lora": ("One optimizer step with LoRA: SFT, and PPO with four models and on one backbone", _render_steps),
    }
    parts = [head]
    for name, cases in sections.items():
        title, render_section = titles[name]
        parts += [f"## {title}", *render_section(cases)]
    return "\n\n".join(parts) + "\n"


def format_table(head: Row, rows: list[Row]) -> str:
    """Format a Markdown table; numbers stand to the right of their columns by the renderer, names to the left in the text."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in [head, *rows]]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def format_spread(values: list[float], digits: int = 2) -> str:
    """Format as median (lowest–highest)."""
    return f"{median(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def _seconds(turns: list[Case], phase: str, clock: str) -> list[float]:
    return [turn["phases"][phase][clock] for turn in turns]


def _ratio(numerator: list[float], denominator: list[float]) -> str:
    return f"{median(numerator) / median(denominator):.2f}"


def _render_ppo(cases: list[Case]) -> list[str]:
    head = [
        *cases[0]["labels"],
        "phase",
        "TRL wall",
        "ours wall",
        "TRL / ours",
        "TRL CPU",
        "ours CPU",
        "TRL / ours",
        "floor CPU",
        "ours / floor",
    ]
    rows: list[Row] = []
    for case in cases:
        floor_s = _compute_floor(case)
        for phase in PHASES:
            row = [*map(str, case["labels"].values()), phase]
            for clock in ("wall_s", "cpu_s"):
                trl, ours = (_seconds(case["engines"][engine], phase, clock) for engine in ("trl", "ours"))
                row += [format_spread(trl), format_spread(ours), _ratio(trl, ours)]
            ours_cpu = median(_seconds(case["engines"]["ours"], phase, "cpu_s"))
            rows.append([*row, f"{floor_s[phase]:.2f}", f"{ours_cpu / floor_s[phase]:.2f}"])
    used = {case["labels"]["precision"]: case["engines"]["trl"][-1].get("mixed_precision") for case in cases}
    told = "; ".join(f"asked for {precision}: {found!r}" for precision, found in used.items())
    return [format_table(head, rows), f"Mixed precision that TRL's accelerator reports, {told}.", _render_memory(cases)]


def _compute_floor(case: Case) -> dict[str, float]:
    """Compute the floor in CPU seconds at our token counts; a shape's rate is the median of all turns."""
    turns, expected = case["engines"]["ours"], list_products(**describe_work(case["work"]))
    counted = list_products(
        **describe_work(
            case["work"],
            round(median(turn["tokens"]["prompt"] for turn in turns)),
            round(median(turn["tokens"]["response"] for turn in turns)),
        )
    )
    by_shape: dict[tuple[int, ...], list[float]] = {}
    for rate in case["rates"]:
        by_shape.setdefault(tuple(rate["shape"]), []).append(rate["per_cpu_s"])
    # The rates are those of the expected counts: the two lists name the same products in the same order.
    rates: dict[tuple[int, int, int], float] = {}
    for phase, products in counted.items():
        for product, like in zip(products, expected[phase], strict=True):
            rates[product.rows, product.inputs, product.outputs] = median(by_shape[like.rows, like.inputs, like.outputs])
    return compute_floor_s(counted, rates)


def _render_steps(cases: list[Case]) -> list[str]:
    """Render engines side by side, in seconds, and the ratios of all to the last one."""
    *others, ours = cases[0]["engines"]
    head = [*cases[0]["labels"]]
    for clock in ("wall", "CPU"):
        head += [f"{engine} {clock}" for engine in (*others, ours)] + [f"{other} / {ours}" for other in others]
    rows: list[Row] = []
    for case in cases:
        row = [*map(str, case["labels"].values())]
        for clock in ("wall_s", "cpu_s"):
            *theirs, mine = (_seconds(case["engines"][engine], "total", clock) for engine in (*others, ours))
            row += [format_spread(seconds) for seconds in (*theirs, mine)] + [_ratio(seconds, mine) for seconds in theirs]
        rows.append(row)
    return [format_table(head, rows), _render_memory(cases)]


def _render_rates(cases: list[Case]) -> list[str]:
    """Render engines side by side, in tokens per second: response tokens (rollout), all real tokens (SFT); ours is the last."""
    *others, ours = cases[0]["engines"]
    is_sft = ours == "packed"
    head = [*cases[0]["labels"]]
    for clock in ("wall", "CPU"):
        head += [f"{engine} tokens / {clock} s" for engine in (*others, ours)] + [f"{ours} / {other}" for other in others]
    rows: list[Row] = []
    for case in cases:
        row = [*map(str, case["labels"].values())]
        for clock in ("wall_s", "cpu_s"):
            *theirs, mine = (
                [_count(turn, is_sft) / turn["phases"]["total"][clock] for turn in case["engines"][engine]] for engine in (*others, ours)
            )
            row += [format_spread(rates, 0) for rates in (*theirs, mine)] + [_ratio(mine, rates) for rates in theirs]
        rows.append(row)
    return [format_table(head, rows), _render_memory(cases)]


def _count(turn: Case, all_tokens: bool) -> int:
    return turn["tokens"]["response"] + (turn["tokens"]["prompt"] if all_tokens else 0)


def _render_memory(cases: list[Case]) -> str:
    """Render what each engine worked on, and its peak of resident memory: in all, and beyond what its imports take."""
    head = [*cases[0]["labels"], "engine", "prompt tokens", "response tokens", "optimizer steps", "peak MiB", "net peak MiB"]
    rows: list[Row] = []
    for case in cases:
        for engine, turns in case["engines"].items():
            tokens = [format_median(turns, "tokens", key) for key in ("prompt", "response")]
            steps = str(turns[-1].get("optimizer_steps", "–"))
            rows.append(
                [*map(str, case["labels"].values()), engine, *tokens, steps, f"{turns[-1]['peak_mb']:.0f}", f"{turns[-1]['net_mb']:.0f}"]
            )
    return format_table(head, rows)


def format_median(turns: list[Case], *keys: str) -> str:
    """Format the median of a nested figure, or a dash where the turns have none."""
    values: list[Any] = list(turns)
    for key in keys:
        values = [value.get(key, {}) for value in values]
    return f"{median(values):.0f}" if values and all(isinstance(value, int | float) for value in values) else "–"
