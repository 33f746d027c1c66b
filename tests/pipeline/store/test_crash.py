"""F1: `kill -9` at every mutating system call of a publish."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.store.store import Store

DRIVER = Path(__file__).with_name("crash_driver.py")


@pytest.fixture(scope="module")
def crashes(tmp_path_factory):
    """Stores whose publishing process was killed, each at another call."""
    directory = tmp_path_factory.mktemp("crashes")
    environment = {**os.environ, "PYTHONPATH": str(DRIVER.parents[3])}
    finished = subprocess.run([sys.executable, str(DRIVER), str(directory)], capture_output=True, text=True, env=environment, timeout=120)
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout)


@pytest.mark.slow
def test_every_kind_of_mutating_call_is_killed(crashes):
    assert set(crashes["calls"]) == {"open", "mkdir", "fsync", "rename", "replace", "unlink", "chmod"}
    assert len(crashes["stores"]) == 2 * len(crashes["calls"]) >= 120


@pytest.mark.slow
def test_a_kill_leaves_no_invalid_artifact_and_a_rerun_succeeds(crashes, publish):
    for crash in crashes["stores"]:
        root = Path(crash["store"])
        store = Store(root)
        store.reap()
        # No directory under a final name is ever damaged, so nothing has to be repaired.
        visible = [artifact.ref for artifact in store.list()]
        assert visible == store.refs(), crash
        assert visible in (["sft@v1", "sft@v2"][: crash["num_before"]], ["sft@v1", "sft@v2"][: crash["num_before"] + 1]), crash
        assert all(store.verify(ref) == [] for ref in visible), crash
        assert crash["printed"] in ("", *visible), crash
        assert not any(root.glob(".staging/*")), crash
        aliases = store.aliases("sft")
        assert crash["num_before"] <= len(aliases) <= len(visible), crash
        assert all(store.get(f"sft@{name}").ref in visible for name in aliases), crash

        artifact = publish(store)
        assert artifact.version == len(visible) + 1, crash
        store.set_alias("sft", "best", artifact.ref, by="rerun")
        assert store.get("sft@best") == store.get("sft") == artifact, crash


@pytest.mark.slow
def test_a_printed_ref_was_seen_in_some_crashes_and_not_in_others(crashes):
    printed = {crash["printed"] for crash in crashes["stores"]}
    assert printed == {"", "sft@v1", "sft@v2"}
