"""F7: many writers at once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.store.store import Store

DRIVER = Path(__file__).with_name("race_driver.py")
NUM_WORKERS, NUM_VERSIONS = 16, 5


@pytest.fixture(scope="module")
def race(tmp_path_factory):
    """A store after 16 processes published 5 versions each, while this process opened and reaped it all the time."""
    root = tmp_path_factory.mktemp("race") / "store"
    environment = {**os.environ, "PYTHONPATH": str(DRIVER.parents[3])}
    workers = [
        subprocess.Popen(
            [sys.executable, str(DRIVER), str(root), str(worker), str(NUM_VERSIONS)], stdout=subprocess.PIPE, text=True, env=environment
        )
        for worker in range(NUM_WORKERS)
    ]
    try:
        for worker in workers:
            assert worker.stdout.readline() == "ready\n"
        root.with_suffix(".go").touch()
        num_damaged = 0
        while any(worker.poll() is None for worker in workers):
            store = Store(root)
            store.reap()
            num_damaged += len(store.refs()) > len(store.list())
        reports = [json.loads(worker.stdout.read()) for worker in workers]
        assert [worker.returncode for worker in workers] == [0] * NUM_WORKERS
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
            worker.stdout.close()
    store = Store(root)
    store.reap()
    return store, reports, num_damaged


@pytest.mark.slow
def test_concurrent_writers_get_distinct_versions_without_gaps(race):
    store, reports, num_damaged = race
    refs = [ref for report in reports for ref in report["refs"]]
    total = NUM_WORKERS * NUM_VERSIONS
    assert sorted(refs) == sorted(f"sft@v{version}" for version in range(1, total + 1))
    assert [artifact.version for artifact in store.list("sft")] == list(range(1, total + 1))
    assert len({artifact.manifest.run_id for artifact in store.list("sft")}) == total
    assert num_damaged == 0


@pytest.mark.slow
def test_concurrent_writers_leave_intact_artifacts_and_no_staging(race):
    store, _, _ = race
    assert [problem for ref in store.refs() for problem in store.verify(ref)] == []
    assert list((store.root / ".staging").iterdir()) == []


@pytest.mark.slow
def test_no_move_of_an_alias_is_lost(race):
    store, reports, _ = race
    moves = [tuple(move) for report in reports for move in report["moves"]]
    # Each move saw the one before it: together they are one chain from nothing to the final ref.
    following = dict(moves)
    assert len(following) == len(moves) == NUM_WORKERS * NUM_VERSIONS
    ref, length = None, 0
    while ref in following:
        ref, length = following[ref], length + 1
    assert length == len(moves)
    assert store.get("sft@best").ref == ref
    for worker, report in enumerate(reports):
        assert store.get(f"sft@of-worker-{worker}").ref == report["refs"][-1]
