"""`rlhf doctor`: what it finds in a store, what it mends, and what it leaves alone."""

import errno
import json
import os
import shutil
import subprocess
import sys
import time

import pytest

from pipeline.cli.doctor import doctor_command
from pipeline.doctor import examine
from pipeline.errors import StoreError
from pipeline.runs.directory import open_run_directory
from pipeline.store.parts import hold_artifacts
from pipeline.store.removal import remove
from pipeline.store.store import Store
from pipeline.store.withdrawn import Withdrawal, withdraw

HEX = "0123456789abcdef" * 2
DAY_S = 24 * 3600


def told_of(store):
    return {finding.place: (finding.level, finding.mend is not None) for finding in examine(store)}


def mend_all(store):
    return {finding.place: finding.mend() for finding in examine(store) if finding.mend}


def names_below(directory):
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


def make_old(path):
    os.utime(path, (time.time() - 2 * DAY_S,) * 2)


@pytest.fixture
def filled(store, publish):
    publish(store)
    publish(store, cache_key="5" * 64, run_id="sft-" + "5" * 16)
    return store


@pytest.mark.parametrize(("number", "removes"), [(errno.EACCES, False), (errno.EIO, True)])
def test_nobody_is_told_to_remove_what_he_may_not_read(filled, monkeypatch, number, removes):
    def refuse(*_arguments, **_fields):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("pipeline.store.manifest.read_bounded", refuse)
    told = [finding.message for finding in examine(filled) if finding.level == "broken"]
    assert len(told) == 2
    for message in told:
        assert ("`rlhf rm sft@v" in message) == ("restore" in message) == removes
        assert message.endswith("Permission denied; read permission needed; change its mode or owner") != removes


def test_a_store_in_order_has_nothing_to_mend(filled):
    assert examine(filled) == [] and examine(Store(filled.root / "nowhere")) == []


def test_versions_without_a_ledger_and_withdrawn_ones_are_told_and_no_fault(filled, rlhf_here):
    withdraw(filled.root, {"sft@v1": Withdrawal(seal=filled.get("sft@v1").seal, reason="it learnt from her", at="now")})
    assert told_of(filled) == {"sft@v1": ("withdrawn", False)}
    for name in ("ledger.jsonl", "artifacts/.ledger.json"):  # as in a store of an earlier version
        (filled.root / name).unlink()
    assert told_of(filled) == {"ledger.jsonl": ("unfinished", False), "sft@v1": ("withdrawn", False)}
    done = rlhf_here("doctor")
    assert done.returncode == 0 and "withdrawn: sft@v1: it learnt from her; `rlhf run` makes one" in done.stdout
    assert done.stdout.endswith("nothing is broken or left over; 1 unfinished and 1 withdrawn, which is no fault\n")
    assert "sft@v1: intact; withdrawn: it learnt from her" in rlhf_here("verify").stdout.replace("\n", " ")
    done = rlhf_here("verify", "sft@v1", "--json")
    assert json.loads(done.stdout) == {"sft@v1": []} and "sft@v1 is withdrawn: it learnt from her" in done.stderr
    (filled.root / "withdrawn.json").write_text("{")
    assert told_of(filled)["withdrawn.json"] == ("broken", False)


def test_leftovers_of_dead_writers_go_and_what_the_living_or_others_have_stays(filled):
    staging = filled.root / ".staging"
    for name in ("sft-" + HEX, "rm-" + HEX):
        (staging / f"{name}.lock").touch()
    (staging / f"sft-{HEX}" / "model").mkdir(parents=True)
    (staging / "somebody's data").mkdir()
    (staging / f"ppo-{HEX}").mkdir()  # without a lock file: not of this store
    with filled.staging("ppo") as alive:
        (alive.path / "weights").touch()
        assert told_of(filled) == {
            f".staging/sft-{HEX}": ("left over", True),
            f".staging/rm-{HEX}": ("left over", True),
            ".staging/somebody's data": ("unfinished", False),
            f".staging/ppo-{HEX}": ("unfinished", False),
        }
        assert set(mend_all(filled).values()) == {True}
        assert (alive.path / "weights").exists()
    assert names_below(staging) == [f"ppo-{HEX}", "somebody's data"]


def test_parts_of_pushes_go_when_they_are_a_day_old_and_claims_when_the_version_is_there(filled):
    staging = filled.root / ".staging"
    old, young = staging / f"{HEX}.part", staging / f"{HEX[::-1]}.part"
    done, begun = staging / "sft-v0001.json", staging / "rm-v0007.json"
    for path in (old, young, done, begun):
        path.touch()
    make_old(old)
    (filled.root / "artifacts" / "rm" / "v0007" / "model").mkdir(parents=True)
    assert told_of(filled) == {
        "rm@v7": ("broken", False),
        f".staging/{old.name}": ("left over", True),
        f".staging/{young.name}": ("unfinished", False),
        f".staging/{done.name}": ("left over", True),
        f".staging/{begun.name}": ("unfinished", False),
    }
    mend_all(filled)
    assert names_below(staging) == sorted([young.name, begun.name])
    assert (filled.root / "artifacts" / "rm" / "v0007" / "model").is_dir()  # artifacts, and halves of them, are for people to remove


def test_a_name_without_its_version_goes_and_one_of_a_damaged_version_stays(filled):
    for name, ref in (("gone", "sft@v2"), ("hurt", "sft@v1"), ("cut", "sft@v1")):
        filled.set_alias("sft", name, ref, by="me")
    (filled.root / "aliases" / "sft" / "cut.json").write_text("{")
    gone = filled.root / "artifacts" / "sft" / "v0002"
    for path in (gone, *gone.rglob("*")):
        path.chmod(0o755)
    shutil.rmtree(gone)
    weights = filled.root / "artifacts" / "sft" / "v0001" / "model" / "model.safetensors"
    weights.parent.chmod(0o755)
    weights.chmod(0o644)
    weights.write_bytes(b"short")
    found = told_of(filled)
    assert found["sft@v1"] == ("broken", False) and found["sft@cut"] == found["sft@gone"] == ("broken", True)
    assert "sft@hurt" not in found
    mend_all(filled)
    assert sorted(filled.aliases("sft")) == ["hurt"]


def test_a_removal_that_was_killed_and_token_ids_of_a_dead_process_are_cleared_away(filled):
    trashed = filled.root / ".trash" / f"sft-v0001-{HEX}" / "model"
    work, strange = filled.root / "tokens" / ".work-abcd_123", filled.root / "tokens" / ".work"
    for directory in (trashed, work, strange):
        directory.mkdir(parents=True)
    trashed.chmod(0o555)
    assert told_of(filled) == {
        f".trash/sft-v0001-{HEX}": ("left over", True),
        "tokens/.work-abcd_123": ("left over", True),
    }
    assert set(mend_all(filled).values()) == {True}
    assert not list((filled.root / ".trash").iterdir()) and not work.exists() and strange.exists()


def test_checkpoints_go_only_of_a_run_whose_artifact_is_there(filled):
    published, stopped, running = (filled.root / "runs" / f"sft-{digit * 16}" for digit in "567")
    for run_dir in (published, stopped, running):
        complete = run_dir / "checkpoints" / "checkpoint-12" / "COMPLETE.json"
        complete.parent.mkdir(parents=True)
        complete.write_text("{}")
    with open_run_directory(filled.root, running.name):
        assert told_of(filled) == {f"runs/{published.name}": ("left over", True), f"runs/{stopped.name}": ("unfinished", False)}
        mend_all(filled)
    assert not (published / "checkpoints").exists()
    assert (stopped / "checkpoints" / "checkpoint-12").exists() and (running / "checkpoints" / "checkpoint-12").exists()
    assert "goes on from checkpoint 12" in next(finding.message for finding in examine(filled) if stopped.name in finding.place)


def test_an_artifact_whose_parent_is_gone_is_told(filled, publish):
    parent = filled.get("sft@v1")
    publish(filled, "rm", parents=[{"ref": "sft@v1", "content_id": parent.content_id}])
    for path in (parent.path, *parent.path.rglob("*")):
        path.chmod(0o755)
    shutil.rmtree(parent.path)
    (finding,) = (finding for finding in examine(filled) if finding.place == "rm@v1")
    assert finding.level == "broken" and "parent sft@v1" in finding.message and finding.mend is None


def test_a_part_that_is_a_link_is_told_and_nothing_behind_it_is_touched(filled, tmp_path):
    data = tmp_path / "data" / ("sft-" + HEX)
    data.mkdir(parents=True)
    (tmp_path / "data" / f"sft-{HEX}.lock").touch()
    shutil.rmtree(filled.root / ".staging")
    (filled.root / ".staging").symlink_to(tmp_path / "data")
    (finding,) = examine(filled)
    assert finding.level == "broken" and "a link, which is not followed" in finding.message and finding.mend is None
    assert data.is_dir()


@pytest.mark.slow
def test_the_command_shows_first_mends_when_asked_and_says_so_by_its_exit_code(filled):
    trash = filled.root / ".trash" / f"sft-v0001-{HEX}"
    trash.mkdir(parents=True)

    def rlhf(*arguments):
        command = [sys.executable, "-P", "-m", "pipeline.cli", "doctor", *arguments, "--store", str(filled.root)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    shown = rlhf()
    mend = f"`rlhf doctor --mend --store {filled.root}`"
    assert shown.returncode == 3 and trash.is_dir() and f"1 thing to do; {mend} mends 1 of them" in shown.stdout
    mended = rlhf("--mend", "--json")
    assert mended.returncode == 0 and json.loads(mended.stdout)[0]["mended"] == "mended: deleted it" and not trash.exists()
    after = rlhf()
    assert (after.returncode, after.stdout) == (0, "nothing to do\n")
    with pytest.raises(StoreError) as caught:
        doctor_command(store=filled.root / "nowhere")
    assert caught.value.exit_code == 4


def test_a_removal_that_is_at_work_is_no_fault(filled, publish, monkeypatch):
    (filled.root / ".trash" / f"sft-v0001-{HEX}").mkdir(parents=True)
    with hold_artifacts(filled.root, alone=True):
        assert told_of(filled) == {}
    shutil.rmtree(filled.root / ".trash")

    def get_once_it_is_gone(self, ref, get=Store.get):
        if "sft@v1" in self.refs():
            remove(self, ["sft@v1"])
        return get(self, ref)

    monkeypatch.setattr(Store, "get", get_once_it_is_gone)
    assert told_of(filled) == {}


def test_what_is_removed_while_all_is_verified_is_no_fault_and_what_is_named_is_missing(filled, rlhf_here, monkeypatch):
    def verify_once_it_is_gone(self, ref, verify=Store.verify):
        if "sft@v1" in self.refs():
            remove(self, ["sft@v1"])
        return verify(self, ref)

    monkeypatch.setattr(Store, "verify", verify_once_it_is_gone)
    done = rlhf_here("verify")
    assert (done.returncode, done.stdout) == (0, "sft@v2: intact\n"), done.stderr
    assert rlhf_here("verify", "sft@v1").returncode == 4
