"""What push and pull share: which versions are there, parents first, a few files at a time, and who is told how far it is."""

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from graphlib import CycleError, TopologicalSorter
from threading import Event
from typing import Protocol

from pipeline.errors import StoreError
from pipeline.remotes import hub
from pipeline.remotes.remote import HUB, Remote
from pipeline.store.manifest import FileEntry, Manifest
from pipeline.store.refs import Ref
from stages.spec import EXIT_VERIFICATION

ID_CHARS = 12  # of a content id, in messages
_STREAMS = 4  # files at a time


class View(Protocol):
    """Who is told how far a transfer is; `moved` by several threads."""

    def started(self, text: str, num_bytes: int) -> None: ...

    def moved(self, num_bytes: int) -> None: ...


def list_refs(remote: Remote, kind: str | None = None) -> list[Ref]:
    """List the versions that have a directory, or on the Hub a tag, by kind, then version."""
    found = hub.list_tags(remote) if remote.protocol == HUB else remote.versions(kind)
    return sorted((ref for ref in found if kind in (None, ref.kind)), key=lambda ref: (ref.kind, ref.version or 0))


def order_parents_first(manifests: Mapping[str, Manifest]) -> list[str]:
    graph = {name: [parent.ref for parent in manifest.parents] for name, manifest in manifests.items()}
    try:
        return list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        cycle = " -> ".join(error.args[1])
        raise StoreError(f"{cycle}: an artifact descends from itself; parents must be older; do not use it", EXIT_VERIFICATION) from error


def in_parallel(work: Callable[[FileEntry, Callable[[int], None]], None], entries: Iterable[FileEntry], view: View) -> None:
    """Work on some files at a time; the first failure, or a signal, stops all."""
    stopped = Event()

    def moved(num_bytes: int) -> None:
        if stopped.is_set():
            raise InterruptedError("another file failed")
        view.moved(num_bytes)

    with ThreadPoolExecutor(max_workers=_STREAMS, thread_name_prefix="transfer") as pool:
        try:
            futures = [pool.submit(work, entry, moved) for entry in entries]
            for future in as_completed(futures):
                future.result()
        except BaseException:
            stopped.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
