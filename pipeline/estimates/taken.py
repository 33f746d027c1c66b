"""What a stage took, as its artifact and its run tell: seconds of each part that was said something of, and memory.

manifest, metrics.jsonl, the run's events -> Taken; many of them -> ratios taken / said, by which the next plan is calibrated
Files may be damaged: what is no time is left out.
"""

import re
import socket
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.estimates.kept import dump_recipe
from pipeline.recipe.schema import Recipe
from pipeline.runs.record import RunRecord, read_record
from pipeline.store.artifact import Artifact
from pipeline.store.directory import open_root
from pipeline.store.disk import read_bounded
from pipeline.store.manifest import CONFIG_FILE, Manifest
from pipeline.store.parts import RUN_PATTERN, RUNS_DIR
from stages.lines import read_line, read_number
from stages.spec import METRICS_FILE, STAGES, StageName

_MAX_BYTES = 256 * 1024 * 1024
_MOST = 1e15  # seconds or bytes: more is no figure of a stage
_START, _SAVING = "start", "saving"
# stage -> part -> the beginnings of what its events call what belongs to it.
_PARTS: dict[str, dict[str, tuple[str, ...]]] = {
    "pretrain": {"train": ("train", "evaluation", "checkpoint", "held-out loss"), "answers": ("held-out answers", "held-out texts")},
    "sft": {"train": ("train", "evaluation", "checkpoint", "held-out loss"), "answers": ("held-out answers",)},
    "rm": {"train": ("train", "evaluation", "checkpoint", "held-out comparisons", "scores of demonstrations")},
    "ppo": {"held-out answers": ("held-out answers",)},
    "evaluate": {
        "answers": ("answers of",),
        "log-probabilities": ("log-probabilities of", "KL of"),
        "scores": ("scores of",),
        "intervals": ("intervals",),
    },
}
_METRICS = {"rollout": "time/rollout_s", "score": "time/score_s", "update": "time/update_s"}  # of each iteration of PPO
# Parts that are said apart, but told together.
_TOLD_TOGETHER = {"held-out scores": "held-out answers", "ptx": "update"}


@dataclass(frozen=True)
class Taken:
    """What a stage took.

    Args:
        seconds: All in all, by the clock.
        parts: Part -> seconds; those that neither events nor metrics tell are missing.
        memory: Bytes of the main process at its peak; None: an earlier version did not measure it.
        whole: Whether it ran in one go: of a run that was resumed only the last attempt is known.
    """

    seconds: float
    parts: dict[str, float]
    memory: float | None
    whole: bool


def read_taken(root: Path, artifact: Artifact, *, with_parts: bool = True) -> Taken | None:
    """Read what an artifact's stage took; None where no stage of this store made it."""
    manifest = artifact.manifest
    if manifest.duration_s is None or manifest.imported is not None:
        return None
    parts: dict[str, float] = {}
    record, events = _read_run(root, manifest, with_events=with_parts)
    if events:
        times = [time for time, _ in events]
        parts[_START] = max(manifest.duration_s - (times[-1] - times[0]), 0.0)
        doing = ""
        for (_, event), begun, ended in zip(events, times, times[1:], strict=False):
            if event.get("event") not in ("note", "warning"):  # after which it goes on with what it was doing
                doing = str(event.get("phase") or event.get("event"))
            for part, words in _PARTS.get(find_stage(manifest.kind) or "", {}).items():
                if doing.startswith(words):
                    parts[part] = parts.get(part, 0.0) + ended - begun
    if manifest.kind == "ppo" and with_parts:
        parts |= _sum_metrics(artifact.path / METRICS_FILE)
    peak = _read_amount(manifest.metrics.get("peak_memory_bytes"))
    return Taken(manifest.duration_s, parts, peak, record is None or _was_whole(record, manifest))


def read_recipe(artifact: Artifact) -> dict[str, Any] | None:
    """Read the recipe that an artifact was made by, as plain data; what it did not have yet is at its default."""
    with suppress(OSError, ValueError):  # of the latter are a ValidationError and a UnicodeDecodeError
        return dump_recipe(Recipe.model_validate_json(read_bounded(artifact.path / CONFIG_FILE, _MAX_BYTES)))
    return None


def sum_together(seconds: Mapping[str, float]) -> dict[str, float]:
    """Add up parts that are said apart, but that a run tells together."""
    added: dict[str, float] = {}
    for part, spent in seconds.items():
        name = _TOLD_TOGETHER.get(part, part)
        added[name] = added.get(name, 0.0) + spent
    return added


def ran_here(root: Path, manifest: Manifest, machine: str) -> bool:
    """Whether a stage ran on the same hardware: on a GPU of that name, or on the CPU of this host."""
    device = (manifest.device or "").lower()
    if machine == "cpu":
        record, _ = _read_run(root, manifest, with_events=False)  # of what was pulled from elsewhere there is none
        place = None if record is None else _find_attempt(record, manifest)
        return device.startswith("cpu") and record is not None and place is not None and record.attempts[place].host == socket.gethostname()
    words, memory = machine.split("-"), re.search(r"\b(\d+)gb\b", device)
    if machine == "a100" and memory and memory[1] == "40":
        return False
    return all(re.search(rf"\b{re.escape(word)}(gb)?\b", device) for word in words)


def find_stage(kind: str) -> StageName | None:
    """Find the stage that makes artifacts of a kind; None: no stage does."""
    return next((name for name, row in STAGES.items() if row.kind == kind), None)


def _find_attempt(record: RunRecord, manifest: Manifest) -> int | None:
    """Find which attempt published an artifact: one that was killed right after that did not write so. None: it is not there any more."""
    own = [place for place, attempt in enumerate(record.attempts) if attempt.ref == manifest.ref]
    begun = [place for place, attempt in enumerate(record.attempts) if not attempt.ref and attempt.start[:19] <= manifest.created_utc]
    return max(own or begun, default=None)


def _was_whole(record: RunRecord, manifest: Manifest) -> bool:
    """Whether the attempt that published an artifact began anew: as the first one, or with `--force` after one that was published."""
    place = _find_attempt(record, manifest)
    if not place:
        return place == 0 and record.began == len(record.attempts)
    return record.attempts[place - 1].outcome == "published"


def _read_run(root: Path, manifest: Manifest, *, with_events: bool = True) -> tuple[RunRecord | None, list[tuple[float, dict[str, Any]]]]:
    """Read the record of an artifact's run, and its events with their times; none where a later attempt has written its own over them."""
    record, events = None, list[tuple[float, dict[str, Any]]]()
    if manifest.run_id is None or not RUN_PATTERN.fullmatch(manifest.run_id):
        return record, events
    with suppress(OSError, ValueError), open_root(root) as store, store.enter(f"{RUNS_DIR}/{manifest.run_id}") as run_dir:
        record = read_record(run_dir)
        if with_events and (record is None or _find_attempt(record, manifest) == len(record.attempts) - 1):
            rows = _read_lines(read_bounded("events.jsonl", _MAX_BYTES, dir_fd=run_dir.fd).splitlines())
            events = [(time, row) for row in rows if (time := _read_amount(row.get("time"))) is not None]
    return record, events


def _sum_metrics(path: Path) -> dict[str, float]:
    sums: dict[str, float] = {}
    with suppress(OSError, ValueError):
        timed = (line for line in read_bounded(path, _MAX_BYTES).splitlines() if b'"time/' in line)  # the others need not be parsed
        for row in _read_lines(timed):
            for part, name in _METRICS.items():
                if (value := _read_amount(row.get(name))) is not None:
                    sums[part] = sums.get(part, 0.0) + value
    return sums


def _read_lines(lines: Iterable[bytes]) -> Iterable[dict[str, Any]]:
    for line in lines:
        with suppress(ValueError):
            yield read_line(line)


def _read_amount(value: object) -> float | None:
    number = read_number(value)
    return number if number is not None and 0 <= number < _MOST else None
