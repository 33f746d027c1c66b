"""Figures -> a table for people, and the same as JSON."""

import json
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers

from tests.bench.table import format_table

Parts = dict[str, dict[str, Any]]  # name -> {"seconds", "problem", "figures": [Figure as a dictionary]}


def describe_gpu(*, pretend: bool) -> str:
    """Name the GPU, its driver, and the versions that matter."""
    name = "a pretend GPU: what runs is shown, no figure means anything" if pretend else f"{torch.cuda.get_device_name()}, {_read_driver()}"
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, Python {platform.python_version()}"
    return f"{name}; {versions}; {datetime.now(UTC).strftime('%Y-%m-%d')}"


def _read_driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return "driver " + subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "driver unknown"


def write_results(path: Path, machine: str, parts: Parts) -> str:
    """Write `path`.md and `path`.json; returns the text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").write_text(json.dumps({"machine": machine, "parts": parts}, indent=1) + "\n", encoding="utf-8")
    text = f"# GPU check\n\n{machine}\n\n" + "\n".join(_render(name, part) for name, part in parts.items())
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    return text


def _render(name: str, part: dict[str, Any]) -> str:
    rows = [
        [
            figure["case"],
            figure["name"],
            _render_value(figure),
            figure["goal"],
            {True: "yes", False: "NO", None: ""}[figure["holds"]],
        ]
        for figure in part["figures"]
    ]
    problem = f"{part['problem']}\n\n" if part["problem"] else ""
    return f"## {name}, {part['seconds']:.0f} s\n\n{problem}{format_table(['case', 'figure', 'value', 'goal', 'holds'], rows)}\n"


def _render_value(figure: dict[str, Any]) -> str:
    if figure["value"] is None:
        return "not shown" if figure["holds"] is None else "failed"
    return f"{figure['value']:.4g} {figure['unit']}".strip()


def holds(parts: Parts) -> bool:
    """Whether every part ended and every goal is met."""
    return all(not part["problem"] and all(figure["holds"] is not False for figure in part["figures"]) for part in parts.values())
