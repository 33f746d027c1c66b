"""The ledger `ledger.jsonl`: every version that was published, imported, pulled and removed, a line each; never written again.

    claim      before a version is renamed into its place: a crash after that accuses nobody
    publish    (import, pull, push) once it is there
    remove     once it is taken away, before it is deleted
    begin      the first line: the versions that were there before the ledger was

A line that a crash kept from being written is written by whoever opens the ledger next: of a claim whose version is there, and of what
lies in the trash.

Each line holds the sha256 of the line before, so that none can be changed, taken out or put in between unnoticed. A version is what its
manifest says, so a line names it by the manifest's seal. Whoever may write in the store can also write the ledger anew: against that
helps a signature (`rlhf sign`).
"""

import hashlib
import json
import os
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

from pipeline.errors import StoreError, escape_controls
from pipeline.store.aliases import user_name
from pipeline.store.directory import Directory, naming, open_root
from pipeline.store.disk import locked, read_bounded, reading, sync_descriptor, writing
from pipeline.store.manifest import Manifest, read_sealed_manifest
from pipeline.store.mark import find_mark_problem, has_mark, read_mark, remove_mark, write_mark
from pipeline.store.refs import Ref, is_kind, parse_version_directory, version_directory
from pipeline.store.staging import ARTIFACTS_DIR
from pipeline.store.trash import list_unnoted, settle

LEDGER_FILE = "ledger.jsonl"
_MAX_BYTES = 1024 * 1024 * 1024
_TAIL_BYTES = 16 * 1024
_START = "0" * 64  # what the first line names as the line before it

Append = Callable[..., None]  # append(event, ref, seal, **more)


@dataclass(frozen=True)
class Entry:
    """What the ledger says last of a version.

    Args:
        event: publish, import, pull, push, begin or remove.
        seal: Of its manifest; None: whatever was there when the ledger was begun, and could not be read.
        at: ISO 8601, UTC.
        by: Who did it.
        cache_key: Of a version that a stage made.
    """

    event: str
    seal: str | None
    at: str
    by: str
    cache_key: str | None = None

    def __str__(self) -> str:
        words = {
            "begin": "was there",
            "publish": "was published",
            "import": "was imported",
            "pull": "was pulled",
            "push": "was pushed here",
            "remove": "was removed",
        }
        return f"{words.get(self.event, self.event)} {self.at[:16].replace('T', ' ')} by {self.by}"


@dataclass
class Ledger:
    """What a ledger says.

    Args:
        entries: Ref -> the last word on it.
        claims: Ref -> seal of what was about to be published, with no word after that.
        problem: Why it is not to be trusted; empty where each line follows from the one before.
    """

    entries: dict[str, Entry] = field(default_factory=dict[str, Entry])
    claims: dict[str, str] = field(default_factory=dict[str, str])
    problem: str = ""

    def accuse(self, ref: str, seal: str) -> str:
        """Say why a version that is there is not the one that was published; empty where it is."""
        entry = self.entries.get(ref)
        if self.problem:
            return self.problem
        if seal == self.claims.get(ref) or (entry and entry.seal in (None, seal)):
            return ""
        if entry is None:
            return (
                f"it stands in no line of {LEDGER_FILE}, so it was put there by hand; one that was published, imported or pulled is needed"
            )
        return f"it is not the one that {entry}: its manifest was written anew; that one is needed"

    def standing(self) -> dict[str, Entry]:
        """Return the versions that should be there, but for those that a crash cut off."""
        return {ref: entry for ref, entry in self.entries.items() if entry.event != "remove"}


def read_ledger(root: Path) -> Ledger | None:
    """Read a store's ledger; None where it has none yet.

    Raises:
        ResourceError: it may not be read (exit 5).
    """
    with suppress(FileNotFoundError), reading(root / LEDGER_FILE), open_root(root) as store:
        mark, lines = read_mark(store), list[bytes]()  # the mark first, as the ledger is there before it
        with suppress(FileNotFoundError), naming(root / LEDGER_FILE):
            try:
                content = read_bounded(LEDGER_FILE, _MAX_BYTES, dir_fd=store.fd)
            except ValueError as error:
                return Ledger(problem=f"{LEDGER_FILE} is {error}; {_RESTORE}")
            lines = content.split(b"\n")[:-1]  # a line without its end was cut by a crash: it is not there
        if problem := find_mark_problem(store, lines, mark):
            return Ledger(problem=f"{LEDGER_FILE}: {problem}; {_RESTORE}")
        return _parse(lines) if lines else None
    return None


_RESTORE = "restore it from a copy, or take what is there as it is: `rlhf doctor --trust`"


def _parse(lines: list[bytes]) -> Ledger:
    ledger, before = Ledger(), _START
    for number, line in enumerate(lines, start=1):
        try:
            row = cast("dict[str, Any]", json.loads(line))
            if row["previous"] != before:
                raise ValueError("does not follow from the line before")
            _apply(ledger, row)
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            ledger.problem = f"{LEDGER_FILE}:{number}: does not follow from the line before it, so it was changed by hand; {_RESTORE}"
            return ledger
        before = hashlib.sha256(line).hexdigest()
    return ledger


def _apply(ledger: Ledger, row: dict[str, Any]) -> None:
    event, at, by = row["event"], row["at"], row["by"]
    if not all(isinstance(word, str) for word in (event, at, by, row.get("ref", ""))):  # no line vouches for the last one
        raise ValueError("not as the store writes it")
    if event == "begin":
        ledger.entries = {ref: Entry("begin", seal, at, by) for ref, seal in row["versions"].items()}
        return
    ref, seal = row["ref"], row["manifest"]
    if event == "claim":
        ledger.claims[ref] = seal
        return
    ledger.claims.pop(ref, None)
    before = ledger.entries.get(ref)
    seal = before.seal if before and event == "remove" else seal  # so that one that a crash left in its place is known again
    ledger.entries[ref] = Entry(event, seal, at, by, row.get("cache_key"))


@contextmanager
def open_ledger(root: Path) -> Generator[Append]:
    """Hold a store's ledger alone, begun where there is none, and mended where a crash cut it off; yield what appends a line.

    Raises:
        ResourceError: it cannot be written (exit 5).
    """
    with writing(root / LEDGER_FILE), ExitStack() as stack:
        store = stack.enter_context(open_root(root, create=True))
        with naming(root / LEDGER_FILE):
            descriptor = stack.enter_context(locked(LEDGER_FILE, dir_fd=store.fd))
        end, last = _find_last(descriptor)
        writer = _Writer(descriptor, end, hashlib.sha256(last).hexdigest() if last else _START)
        if not last:
            writer.append("begin", versions=_find_seals(store), store=uuid4().hex)  # no other ledger begins like this one
            sync_descriptor(store.fd)
        elif (claim := _read_claim(last)) and _read_seal(store, claim["ref"]) == claim["manifest"]:
            kept = {name: claim[name] for name in ("content_id", "cache_key") if name in claim}
            writer.append(str(claim.get("for", "publish")), claim["ref"], claim["manifest"], found_after="a crash", **kept)
        for place, ref in list_unnoted(store).items():
            entry = _parse(os.pread(descriptor, writer.end, 0).split(b"\n")[:-1]).entries.get(ref)
            if entry is None or entry.event != "remove":  # else it was killed, or refused, after the line
                writer.append("remove", ref, found_after="a crash")
            settle(store, place)
        if not has_mark(store):  # one that is there stays: of a ledger that was removed it tells until somebody trusts what is there
            write_mark(store, *_read_beginning(descriptor))
        yield writer.append


def _read_beginning(descriptor: int) -> tuple[str, str]:
    """Return when a ledger was begun, and the sha256 of its first line."""
    with open(os.dup(descriptor), "rb") as stream:  # noqa: PTH123
        stream.seek(0)
        line = stream.readline().removesuffix(b"\n")
    with suppress(ValueError, TypeError, LookupError):
        return str(json.loads(line)["at"]), hashlib.sha256(line).hexdigest()
    return "before", hashlib.sha256(line).hexdigest()


def _find_seals(store: Directory) -> dict[str, str | None]:
    """Find the versions that are there, and the seal of each; None where its manifest is damaged."""
    seals: dict[str, str | None] = {}
    with suppress(FileNotFoundError), store.enter(ARTIFACTS_DIR) as artifacts:
        for kind in filter(is_kind, artifacts.directories()):
            with artifacts.enter(kind) as directory:
                versions = sorted(filter(None, map(parse_version_directory, directory.directories())))
            seals |= {ref: _read_seal(store, ref) for ref in (str(Ref(kind, version)) for version in versions)}
    return seals


def _read_seal(store: Directory, ref: str) -> str | None:
    kind, _, version = ref.partition("@v")
    with suppress(OSError, StoreError), store.enter(f"{ARTIFACTS_DIR}/{kind}/{version_directory(int(version))}") as directory:
        return read_sealed_manifest(directory)[1]
    return None


def describe_version(manifest: Manifest) -> dict[str, str]:
    """Return what else a line says of a version that is published."""
    return {"content_id": manifest.content_id} | ({"cache_key": manifest.cache_key} if manifest.cache_key else {})


@dataclass
class _Writer:
    descriptor: int
    end: int
    previous: str

    def append(self, event: str, ref: str = "", seal: str | None = None, **more: Any) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        named = {"ref": ref, "manifest": seal} if ref else {}
        row = {"event": event, **named, **more, "at": now, "by": escape_controls(user_name()), "previous": self.previous}
        line = json.dumps(row).encode()
        try:
            _write_all(self.descriptor, line + b"\n", self.end)
            os.fsync(self.descriptor)
        except OSError:
            with suppress(OSError):
                os.ftruncate(self.descriptor, self.end)  # a full disk: no half of a line stays
            raise
        self.end += len(line) + 1
        self.previous = hashlib.sha256(line).hexdigest()


def _write_all(descriptor: int, content: bytes, offset: int) -> None:
    start = 0
    while start < len(content):
        start += os.pwrite(descriptor, content[start:], offset + start)


def _find_last(descriptor: int) -> tuple[int, bytes]:
    """Find where the ledger ends, and its last line; what a crash left of one more is cut off."""
    size = end = os.fstat(descriptor).st_size
    tail, length = b"", _TAIL_BYTES
    while True:
        start = max(0, size - length)
        tail = os.pread(descriptor, size - start, start)
        end = start + tail.rfind(b"\n") + 1
        whole = tail[: end - start]
        if start == 0 or whole.count(b"\n") > 1:
            break
        length *= 8
    if end != size:
        os.ftruncate(descriptor, end)
    return end, whole[:-1].rpartition(b"\n")[2]


def _read_claim(line: bytes) -> dict[str, Any] | None:
    with suppress(ValueError, AttributeError, RecursionError):
        row = json.loads(line)
        if row.get("event") == "claim" and isinstance(row.get("ref"), str):
            return row
    return None


def begin_anew(root: Path) -> str | None:
    """Put a ledger aside, where there is one, and begin another one with the versions that are there; return the old one's new name.

    Raises:
        ResourceError: it cannot be renamed (exit 5).
    """
    aside = None
    with writing(root / LEDGER_FILE), ExitStack() as stack:
        store: Directory = stack.enter_context(open_root(root))
        with naming(root / LEDGER_FILE):
            descriptor = stack.enter_context(locked(LEDGER_FILE, dir_fd=store.fd))
            remove_mark(store)
            if os.fstat(descriptor).st_size:
                aside = f"ledger-{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}.jsonl"
                os.rename(LEDGER_FILE, aside, src_dir_fd=store.fd, dst_dir_fd=store.fd)
                sync_descriptor(store.fd)
    with open_ledger(root):
        return aside
