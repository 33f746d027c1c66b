"""Forget: records are left out from now on, and what learnt from them is withdrawn.

hashes -> `records/forgotten` -> artifacts that learnt from them, and all that stand on those -> withdrawn; token ids of those sets go

The sources are nobody's but the user's: they stay as they are, and loading leaves the records out.
"""

import errno
import json
import shutil
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from data.identity import FORGOTTEN_FILE, Forgotten, read_forgotten, render_forgotten
from pipeline.errors import StoreError
from pipeline.privacy.lists import count_listed, list_path
from pipeline.privacy.trace import Trace, trace
from pipeline.store.directory import Directory, naming, open_root
from pipeline.store.disk import locked, read_bounded, replace_durably, writing
from pipeline.store.parts import MIXES_DIR, RECORDS_DIR, REPLIES_DIR, RUNS_DIR, TOKENS_DIR
from pipeline.store.store import Store
from pipeline.store.withdrawn import Withdrawal, withdraw
from stages.spec import EXIT_VERIFICATION

_MAX_JSON_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True)
class Forgetting:
    """What came of it.

    Args:
        traces: What is known of each artifact.
        num_new: How many hashes were not on the list before.
        tokens: Directories of token ids that were removed.
        runs: Runs that are not finished and learn from the records; nobody goes on with them.
    """

    traces: list[Trace]
    num_new: int
    tokens: list[str]
    runs: list[str]


def forget(store: Store, wanted: set[bytes], secret: bytes) -> Forgetting:
    """Put records on the list of what is left out, and withdraw what learnt from them; the same again does no harm.

    Raises:
        StoreError: the list is damaged (exit 3), or the file system refused (exit 5).
    """
    directory = store.root / RECORDS_DIR
    with writing(directory), ExitStack() as stack:
        records = stack.enter_context(stack.enter_context(open_root(store.root, create=True)).enter(RECORDS_DIR, create=True))
        with naming(directory / ".lock"):
            stack.enter_context(locked(".lock", dir_fd=records.fd))
        before = _read(directory) or Forgotten(secret, frozenset())
        after = Forgotten(secret, before.digests | wanted)
        replace_durably(FORGOTTEN_FILE, render_forgotten(after), dir_fd=records.fd)
        traces = trace(store, wanted, secret)
        _withdraw(store, [found for found in traces if found.learnt])
    _remove_all(store.root, REPLIES_DIR)  # of language models, which may quote what was forgotten: no list says of which records each is
    num_new = len(after.digests) - len(before.digests)
    # Copies of records, made anew without those that were forgotten; who writes there now removes its own.
    _remove_all(store.root, MIXES_DIR, _pass_over_moved)
    return Forgetting(traces, num_new, _remove_tokens(store.root, wanted, secret), _find_runs(store.root, wanted, secret))


def withdraw_forgotten(store: Store) -> None:
    """Withdraw what was being made while something that it learnt from was forgotten; a process may have been killed before it did so."""
    forgotten = _read(store.root / RECORDS_DIR)
    if forgotten is not None:
        traces = trace(store, set(forgotten.digests), forgotten.secret)
        _withdraw(store, [found for found in traces if found.learnt and not store.find_withdrawal(found.artifact)])


def _read(directory: Path) -> Forgotten | None:
    try:
        return read_forgotten(directory)
    except ValueError as error:
        raise StoreError(str(error), EXIT_VERIFICATION) from error


def _withdraw(store: Store, found: Iterable[Trace]) -> None:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    versions: dict[str, Withdrawal] = {}
    for each in found:
        reason = f"it {', '.join(each.uses)}, of which records were forgotten {now[:10]}"
        versions[each.artifact.ref] = Withdrawal(seal=each.artifact.seal, reason=reason, at=now)
    if versions:
        withdraw(store.root, versions)


def _remove_tokens(root: Path, wanted: set[bytes], secret: bytes) -> list[str]:
    """Remove the token ids of sets that hold what was forgotten, or of which that is not known: they are made anew without it."""
    removed: list[str] = []
    with writing(root / TOKENS_DIR), suppress(FileNotFoundError), open_root(root) as store, store.enter(TOKENS_DIR) as tokens:
        for name in tokens.directories():
            if name.startswith(".") or _counts_none(root, tokens, name, wanted, secret):  # a draft is of a process that may be at work
                continue
            with suppress(OSError):
                shutil.rmtree(name, dir_fd=tokens.fd)
                removed.append(name)
    return sorted(removed)


def _counts_none(root: Path, tokens: Directory, name: str, wanted: set[bytes], secret: bytes) -> bool:
    with suppress(OSError, ValueError, LookupError, TypeError, RecursionError):
        made = json.loads(read_bounded(f"{name}/made.json", _MAX_JSON_BYTES, dir_fd=tokens.fd))
        path = list_path(root, name.partition("-")[0], made["fingerprint"])
        return path is not None and count_listed(path, secret, wanted) == 0
    return False


def _remove_all(root: Path, part: str, onerror: Callable[[object, str, Any], None] | None = None) -> None:
    with writing(root / part), suppress(FileNotFoundError), open_root(root) as store, store.enter(part) as inside:
        for name in inside.directories():
            shutil.rmtree(name, dir_fd=inside.fd, onerror=onerror)


def _pass_over_moved(_function: object, path: str, failure: tuple[type[BaseException], BaseException, object]) -> None:
    """Pass over what another process writes into, renames or removes: it reads the list once more before it goes on."""
    if not (isinstance(failure[1], OSError) and failure[1].errno in (errno.ENOENT, errno.ENOTEMPTY)):
        raise failure[1]


def _find_runs(root: Path, wanted: set[bytes], secret: bytes) -> list[str]:
    found: list[str] = []
    with suppress(FileNotFoundError), open_root(root) as store, store.enter(RUNS_DIR) as runs:
        for name in runs.directories():
            with suppress(OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError), runs.enter(name) as run_dir:
                sets = json.loads(read_bounded("spec.json", _MAX_JSON_BYTES, dir_fd=run_dir.fd))["fingerprints"]
                held = [_holds(root, kind, each, wanted, secret) for kind, splits in sets.items() for each in splits.values()]
                if any(held) and "checkpoints" in run_dir.directories():
                    found.append(name)
    return sorted(found)


def _holds(root: Path, kind: str, fingerprint: str, wanted: set[bytes], secret: bytes) -> bool:
    path = list_path(root, kind, fingerprint)
    return path is not None and bool(count_listed(path, secret, wanted))
