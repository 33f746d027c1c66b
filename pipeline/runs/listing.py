"""All runs of a store, as plain data: when, how long, how it ended, what it published or goes on from. Reading changes nothing."""

import os
import stat
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from pipeline.errors import StoreError
from pipeline.runs.lock import LOCK_FILE
from pipeline.runs.record import Attempt, read_record
from pipeline.runs.unfinished import newest_checkpoint
from pipeline.store.directory import Directory, open_root
from pipeline.store.disk import is_locked, reading
from pipeline.store.parts import RUN_PATTERN, RUNS_DIR
from pipeline.store.store import Store
from stages.spec import EXIT_MISSING


def list_runs(store: Store) -> list[dict[str, Any]]:
    """Return the runs of a store, the newest first.

    Raises:
        ResourceError: `runs/` is a link, or cannot be read (exit 5).
    """
    rows: list[dict[str, Any]] = []
    with suppress(FileNotFoundError), reading(store.root), open_root(store.root) as root, root.enter(RUNS_DIR) as runs:
        for name in filter(RUN_PATTERN.fullmatch, runs.directories()):
            try:
                with runs.enter(name) as run_dir:
                    rows.append(_describe(run_dir, store))
            except FileNotFoundError:  # removed meanwhile
                continue
            except OSError as error:
                rows.append(_row(name, outcome="unreadable", reason=error.strerror or str(error)))
    return sorted(rows, key=lambda row: (row["start"], row["run"]), reverse=True)


def describe_run(store: Store, name: str) -> dict[str, Any]:
    """Return one run, as `list_runs` does.

    Raises:
        StoreError: it is not there any more (exit 4), or cannot be read (exit 5).
    """
    try:
        with reading(store.root), open_root(store.root) as root, root.enter(f"{RUNS_DIR}/{name}") as run_dir:
            return _describe(run_dir, store)
    except FileNotFoundError as error:
        raise StoreError(f"{store.root / RUNS_DIR / name}: it is gone; `rlhf runs` lists what there is", EXIT_MISSING) from error


def _describe(run_dir: Directory, store: Store) -> dict[str, Any]:
    name = run_dir.path.name
    found: dict[str, Any] = {"checkpoint": newest_checkpoint(run_dir), "path": str(run_dir.path)}
    running = is_locked(LOCK_FILE, dir_fd=run_dir.fd)  # first: what ends in between is not taken for killed
    try:
        record = read_record(run_dir)
    except (OSError, ValueError) as error:
        reason = f"run.json: {error.strerror if isinstance(error, OSError) else error}"
        return _row(name, start=_began(run_dir), outcome="running" if running else "not known", reason=reason, **found)
    if record is None:  # of an earlier version, or a stage that was started by hand
        return _row(name, start=_began(run_dir), outcome="running" if running else "not known", reason="no run.json", **found)
    fields = record.last.model_dump()
    if fields["outcome"] == "running" and not running:
        fields |= _find_end(name, record.last, store)
    if fields["outcome"] == "running":
        since_s = (datetime.now(UTC) - _parse_time(record.last.start)).total_seconds()
        fields["duration_s"] = since_s if since_s >= 0 else None  # a clock that was set back: nobody knows
    return _row(name, attempts=record.began, **found, **fields)


def _row(name: str, **fields: Any) -> dict[str, Any]:
    match = RUN_PATTERN.fullmatch(name)
    assert match is not None
    empty: dict[str, Any] = {"start": "", "end": None, "duration_s": None, "attempts": None, "checkpoint": None, "ref": None}
    return {"run": name, "stage": match["stage"], **empty, **fields}


def _find_end(name: str, attempt: Attempt, store: Store) -> dict[str, Any]:
    """Say how a run ended that did not write it: it was killed, before or after it published something."""
    for artifact in reversed(store.list()):
        if artifact.manifest.run_id == name and artifact.manifest.created_utc >= attempt.start[:19]:
            return {"outcome": "published", "ref": artifact.ref, "reason": "killed after that"}
    return {"outcome": "killed"}


def _began(run_dir: Directory) -> str:
    with suppress(OSError):
        status = os.stat("spec.json", dir_fd=run_dir.fd, follow_symlinks=False)
        if stat.S_ISREG(status.st_mode):
            return datetime.fromtimestamp(status.st_mtime, UTC).isoformat(timespec="milliseconds")
    return ""


def _parse_time(text: str) -> datetime:
    with suppress(ValueError):
        found = datetime.fromisoformat(text)
        return found if found.tzinfo else found.replace(tzinfo=UTC)
    return datetime.now(UTC)
