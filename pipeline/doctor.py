"""What of a store is broken, left over, unfinished or withdrawn: shown; and mended on request, where that takes nothing from anybody.

look at each part -> findings -> mend those that can be, each looked at once more under its own lock -> look again

Only what bears one of the store's own names, and which nobody works on, is removed. Artifacts are never: `rlhf rm` removes those.
"""

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from pipeline.errors import StoreError
from pipeline.runs.directory import forget_checkpoints
from pipeline.runs.listing import list_runs
from pipeline.runs.lock import LOCK_FILE
from pipeline.store.aliases import list_alias_refs, read_alias, remove_alias
from pipeline.store.directory import open_root
from pipeline.store.disk import is_locked, reading, take_lock, tell_state, writing
from pipeline.store.ledger import LEDGER_FILE, open_ledger
from pipeline.store.manifest import MANIFEST_FILE
from pipeline.store.parts import RUNS_DIR, TOKENS_DIR, hold_artifacts, require_own_parts
from pipeline.store.refs import version_directory
from pipeline.store.removal import empty_trash
from pipeline.store.staging import ARTIFACTS_DIR, LOCK_SUFFIX, STAGING_DIR, is_staging, reap_staging
from pipeline.store.store import Store
from pipeline.store.trash import list_trash
from pipeline.store.withdrawn import WITHDRAWN_FILE, name_maker

_STALE_S = 24 * 3600.0  # of what has no lock
_PART = re.compile(r"[0-9a-f]{32}\.part")
_CLAIM = re.compile(r"([a-z][a-z0-9_-]{0,31})-(v[0-9]{4,9})\.json")
_TOKEN_WORK = re.compile(r"\.work-[a-z0-9_]{8}")

Level = Literal["broken", "left over", "unfinished", "withdrawn"]
Mend = Callable[[], bool]  # whether there still was something to mend


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be.

    Args:
        level: `unfinished` is no fault: it goes on, or is done with, when a command is given (again). Nor is `withdrawn`.
        place: Where in the store, or the ref.
        message: What was found; what to do.
        mend: Puts it right; None where that is for people to decide.
        mended: What `mend` does, in a phrase.
    """

    level: Level
    place: str
    message: str
    mend: Mend | None = None
    mended: str = ""


def examine(store: Store) -> list[Finding]:
    """Look at all parts of a store; nothing is changed. Bytes are not compared: `rlhf verify` does that.

    Raises:
        ResourceError: it cannot be read (exit 5).
    """
    try:
        require_own_parts(store.root)
    except StoreError as error:
        return [Finding("broken", "", error.message)]
    versions = (_find_in_ledger, _find_bad_artifacts, _find_withdrawn, _find_bad_aliases)
    others = (_find_in_staging, _find_trash, _find_in_tokens, _find_in_runs)
    return [finding for look in (*versions, *others) for finding in look(store)]


def _find_in_ledger(store: Store) -> Iterator[Finding]:
    if problem := _distrust_ledger(store):
        yield Finding("broken", "", problem)
        return
    lost = store.find_lost()
    if not tell_state(store.root, LEDGER_FILE) and store.refs():
        found = "not there: an earlier version of rlhf made this store, or it was removed; if it was, restore it from a copy"
        yield Finding("unfinished", LEDGER_FILE, f"{found}; the next write begins another one, which takes what is there as it is")
    for ref, entry in lost.items():
        found = f"it {entry}, and is gone without `rlhf rm`; restore it"
        yield Finding("broken", ref, found, partial(_note_removal, store, ref), "noted in the ledger that it is gone")


def _distrust_ledger(store: Store) -> str:
    """Say why a store's ledger is not to be trusted; empty where it is."""
    try:
        store.find_lost()
    except StoreError as error:
        return error.message
    return ""


def _note_removal(store: Store, ref: str) -> bool:
    with hold_artifacts(store.root, alone=True):
        if ref not in store.find_lost():
            return False
        with open_ledger(store.root) as append:
            append("remove", ref, found_gone=True)
    return True


def _find_bad_artifacts(store: Store) -> Iterator[Finding]:
    told = _distrust_ledger(store)
    for ref in store.refs():
        try:
            store.get(ref)
            store.lineage(ref)
        except StoreError as error:
            if (told and told in error.message) or ref not in store.refs():  # which was removed meanwhile
                continue
            kind, _, version = ref.partition("@v")
            half = not (store.root / ARTIFACTS_DIR / kind / version_directory(int(version)) / MANIFEST_FILE).exists()
            found = "no manifest, so it is half of an artifact, such as a push that was stopped leaves" if half else error.message
            mending = "" if isinstance(_find_cause(error), PermissionError) else f"; push or restore it again, or `rlhf rm {ref}`"
            yield Finding("broken", ref, f"{found}{mending}")


def _find_withdrawn(store: Store) -> Iterator[Finding]:
    for artifact in store.list():
        try:
            reason = store.find_withdrawal(artifact)
        except StoreError as error:
            yield Finding("broken", WITHDRAWN_FILE, error.message)
            return
        if reason:
            takes = f"`rlhf gc --remove` or `rlhf rm {artifact.ref}` takes this one"
            yield Finding("withdrawn", artifact.ref, f"{reason}; {name_maker(artifact.kind)} makes one without them, {takes}")


def _find_bad_aliases(store: Store) -> Iterator[Finding]:
    for name in list_alias_refs(store.root):
        if problem := _describe_bad_alias(store, name):
            yield Finding(
                "broken", name, f"{problem}; set it anew with `rlhf alias`", partial(_mend_alias, store, name), "removed the name"
            )


def _describe_bad_alias(store: Store, name: str) -> str:
    kind, _, alias_name = name.partition("@")
    try:
        alias = read_alias(store.root, kind, alias_name)
    except StoreError as error:
        return error.message
    if alias.ref not in store.refs():
        return f"it names {alias.ref}, which is not there"
    with suppress(StoreError):  # a damaged version is told by itself, and may be restored
        if store.get(alias.ref).content_id != alias.content_id:
            return f"it was given to {alias.ref} with content {alias.content_id[:12]}, and there is another one now"
    return ""


def _mend_alias(store: Store, name: str) -> bool:
    with hold_artifacts(store.root, alone=True):  # nobody sets one meanwhile
        if name not in list_alias_refs(store.root) or not _describe_bad_alias(store, name):
            return False
        kind, _, alias_name = name.partition("@")
        remove_alias(store.root, kind, alias_name)
        return True


def _find_in_staging(store: Store) -> Iterator[Finding]:
    """Find what writers, pulls, and pushes to this store from elsewhere left."""
    with suppress(FileNotFoundError), reading(store.root), open_root(store.root) as root, root.enter(STAGING_DIR) as place:
        names = set(place.names())
        for name in sorted({name.removesuffix(LOCK_SUFFIX) for name in names}):
            where = f"{STAGING_DIR}/{name}"
            if is_staging(name) and name + LOCK_SUFFIX in names:
                if not is_locked(name + LOCK_SUFFIX, dir_fd=place.fd):
                    left = "a writer that died left it" if name in names else "the lock of a writer that died"
                    found = f"{left}; a stopped pull would go on from it, the next `rlhf run` removes it"
                    yield Finding("left over", where, found, lambda name=name: bool(reap_staging(store.root, name)), "removed it")
            elif _PART.fullmatch(name):
                yield _describe_part(store.root, name)
            elif match := _CLAIM.fullmatch(name):
                yield _describe_claim(store.root, name, match[1], match[2])
            else:
                yield Finding("unfinished", where, "not of this store, and left alone; if nobody needs it, remove it by hand")


def _describe_part(root: Path, name: str) -> Finding:
    where = f"{STAGING_DIR}/{name}"
    if _age_s(root / where) < _STALE_S:
        return Finding("unfinished", where, "a file that a push wrote within the last day; push again, if that was stopped")
    return Finding("left over", where, "a file that a stopped push left", partial(_unlink, root, name, _is_stale), "removed it")


def _describe_claim(root: Path, name: str, kind: str, directory: str) -> Finding:
    where, ref = f"{STAGING_DIR}/{name}", f"{kind}@v{int(directory[1:])}"
    if _is_pushed(root / where):
        return Finding(
            "left over", where, f"the claim of a push of {ref}, which is there", partial(_unlink, root, name, _is_pushed), "removed it"
        )
    todo = "push it again, or, if nobody will, remove this file by hand"
    return Finding("unfinished", where, f"a push of {ref} was begun from elsewhere and is not finished; {todo}")


def _is_pushed(claim: Path) -> bool:
    match = _CLAIM.fullmatch(claim.name)
    assert match is not None
    return (claim.parents[1] / ARTIFACTS_DIR / match[1] / match[2] / MANIFEST_FILE).is_file()


def _find_cause(error: BaseException) -> BaseException:
    """Find what an error began with: of an artifact that another user keeps, that it may not be read, which removing does not mend."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _is_stale(path: Path) -> bool:
    return _age_s(path) >= _STALE_S


def _age_s(path: Path) -> float:
    with suppress(OSError):
        return time.time() - path.lstat().st_mtime
    return 0.0


def _unlink(root: Path, name: str, still: Callable[[Path], bool]) -> bool:
    path = root / STAGING_DIR / name
    with writing(path), suppress(FileNotFoundError):
        if still(path) and not path.is_dir():
            path.unlink()
            return True
    return False


def _find_trash(store: Store) -> Iterator[Finding]:
    def mend(name: str) -> bool:
        was_there = name in list_trash(store.root)
        with hold_artifacts(store.root, alone=True):
            empty_trash(store.root)
        return was_there

    for name in list_trash(store.root):
        yield Finding("left over", name, "a removal that was killed left it", partial(mend, name), "deleted it")


def _find_in_tokens(store: Store) -> Iterator[Finding]:
    directory = store.root / TOKENS_DIR
    with suppress(FileNotFoundError), reading(directory), open_root(store.root) as root, root.enter(TOKENS_DIR) as tokens:
        if is_locked(".lock", dir_fd=tokens.fd):
            return
        for name in sorted(filter(_TOKEN_WORK.fullmatch, tokens.directories())):
            found = "a process that made token ids and died left it"
            yield Finding("left over", f"{TOKENS_DIR}/{name}", found, partial(_remove_token_work, store.root, name), "removed it")


def _remove_token_work(root: Path, name: str) -> bool:
    with writing(root / TOKENS_DIR), ExitStack() as stack:
        tokens = stack.enter_context(stack.enter_context(open_root(root)).enter(TOKENS_DIR))
        lock = take_lock(".lock", wait=False, dir_fd=tokens.fd)
        if lock is None:
            return False
        stack.callback(os.close, lock)
        if name not in tokens.directories():
            return False
        shutil.rmtree(name, dir_fd=tokens.fd)
        return True


def _find_in_runs(store: Store) -> Iterator[Finding]:
    published = {artifact.manifest.run_id: artifact.ref for artifact in store.list() if artifact.manifest.run_id}
    for row in list_runs(store):
        name, where = row["run"], f"{RUNS_DIR}/{row['run']}"
        if row["outcome"] == "running" or not _has_checkpoints(store.root, name):
            continue
        if name in published:
            found = f"checkpoints of a run that published {published[name]}"
            mend = partial(_forget, store.root, name)
            yield Finding("left over", where, found, mend, "removed them")
            continue
        why = f" ({row['reason']})" if row.get("reason") else ""
        step = row["checkpoint"]
        goes_on = "begins anew" if step is None else f"goes on from checkpoint {step}"
        found = f"{row['outcome']}{why} before it left an artifact"
        yield Finding("unfinished", where, f"{found}; the same command {goes_on}; if nobody wants that, remove the directory by hand")


def _has_checkpoints(root: Path, name: str) -> bool:
    with suppress(OSError), open_root(root) as store, store.enter(f"{RUNS_DIR}/{name}") as run_dir:
        return "checkpoints" in run_dir.directories() and not is_locked(LOCK_FILE, dir_fd=run_dir.fd)
    return False


def _forget(root: Path, name: str) -> bool:
    was_there = _has_checkpoints(root, name)
    forget_checkpoints(root, name)
    return was_there and not _has_checkpoints(root, name)
