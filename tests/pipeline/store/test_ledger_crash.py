"""Who writes in the ledger is killed, or refused by the disk, at every mutating call: the ledger says what happened, and nothing else."""

import errno
import json
import os
import shutil
import signal
from threading import Lock

import pytest

from pipeline.errors import StoreError
from pipeline.remotes.addresses import open_remote
from pipeline.remotes.pull import pull
from pipeline.remotes.push import push
from pipeline.store.disk import writing
from pipeline.store.importing import import_directory
from pipeline.store.ledger import begin_anew, open_ledger, read_ledger
from pipeline.store.manifest import ManifestFields
from pipeline.store.removal import collect, remove
from pipeline.store.store import Store
from pipeline.store.trash import list_trash
from tests.pipeline.remotes.remote_parts import View
from tests.pipeline.store.crash_driver import intercept

pytestmark = pytest.mark.slow
KILLED, REFUSED, FULL = "killed", errno.EACCES, errno.ENOSPC


def other(store):
    return Store(store.root.with_name("other"))


def publish_one(store):
    with store.staging("sft") as staging, writing(staging.path):
        (staging.path / "log.txt").write_bytes(b"done")
        return store.publish(staging, ManifestFields(cache_key="5" * 64))


OPERATIONS = {
    "publish": publish_one,
    "import": lambda store: import_directory(store, other(store).get("sft@v3").path, None),
    "pull": lambda store: pull(store, "rm@v1", open_remote(f"file://{other(store).root}"), View()),
    "push": lambda store: push(other(store), "rm@v1", open_remote(f"file://{store.root}"), View()),
    "rm": lambda store: remove(store, ["sft@v1"]),
    "gc": lambda store: collect(store, 1),
    "trust": lambda store: begin_anew(store.root),
}


@pytest.fixture
def stores(tmp_path, publish):
    """A function: a name -> a fresh store with sft@v1 (signed), sft@v2, beside one with sft@v1 to v3 and rm@v1."""
    made = tmp_path / "made"
    for name, num_versions in (("store", 2), ("other", 3)):
        for number in range(num_versions):
            publish(Store(made / name), files={"model/a": str(number).encode(), "log.txt": b""})
    publish(Store(made / "other"), "rm")
    (made / "store/artifacts/sft/v0001.sig.json").write_text("{}")

    def fresh(name):
        shutil.copytree(made, tmp_path / name)
        return Store(tmp_path / name / "store")

    return fresh


def run_with_fault(operation, store, fault, number):
    """Run an operation in a child, with a fault at its call of a number; returns whether it came so far, and the child's exit code."""
    child = os.fork()
    if child == 0:
        count, lock = 0, Lock()

        def on_call(name, moment):
            nonlocal count
            with lock:
                count += moment == "before"
                is_it = moment == "before" and count == number
            if is_it and fault == KILLED:
                os.kill(os.getpid(), signal.SIGKILL)
            elif is_it:
                raise OSError(fault, os.strerror(fault))

        code = 1
        try:
            intercept(on_call)
            operation(store)
            code = 0
        except StoreError as error:
            code = error.exit_code
        finally:
            os._exit(code if count >= number else 100)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return status != 100, status


def events_of(store):
    """What the ledger says of each version, line by line."""
    events = {}
    for line in (store.root / "ledger.jsonl").read_bytes().splitlines():
        row = json.loads(line)
        events.setdefault(row.get("ref", ""), []).append(row["event"])
    return events


def check(store, name, fault):
    there = {ref for ref, found in store.survey() if name != "push" or not isinstance(found, StoreError)}  # no manifest: half pushed
    assert store.find_lost() == {}
    assert all(store.verify(ref) == [] for ref in there)
    with open_ledger(store.root):  # whoever writes next
        pass
    ledger = read_ledger(store.root)
    assert ledger.problem == "" and ledger.standing().keys() == there
    if name != "trust":
        for ref, events in events_of(store).items():
            done = [event for event in events if event != "claim"]
            assert len(done) == len(set(done)), (ref, events)  # nothing is said twice
            assert ("remove" in done) == (ref != "" and ref not in there and len(done) > 0), (ref, events)
    signed = (store.root / "artifacts/sft/v0001.sig.json").exists()
    assert signed == ("sft@v1" in store.refs()) or (signed and fault != KILLED)  # the disk may refuse to drop it


@pytest.mark.parametrize(
    ("name", "fault"),
    [*((name, KILLED) for name in OPERATIONS), *((name, fault) for name in ("publish", "rm") for fault in (REFUSED, FULL))],
)
def test_the_ledger_says_what_happened_whatever_happens(stores, name, fault):
    for number in range(1, 200):
        store = stores(f"{name}-{number}")
        came_so_far, code = run_with_fault(OPERATIONS[name], store, fault, number)
        assert code == -signal.SIGKILL if came_so_far and fault == KILLED else code in (0, 3, 5, 100), (number, code)
        check(store, name, fault)
        if name in ("rm", "gc"):
            collect(store, 1)
            assert list_trash(store.root) == []
        shutil.rmtree(store.root.parent)
        if not came_so_far:
            break
    assert 10 < number < 199
