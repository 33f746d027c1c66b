"""Push and pull through moto's S3 server on loopback: conditional create, metadata, processes that are killed. Row F10."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from itertools import count

import pytest

from pipeline.errors import StoreError
from pipeline.remotes.addresses import open_remote
from pipeline.remotes.pull import pull
from pipeline.remotes.push import push
from pipeline.remotes.transfers import list_refs
from pipeline.store.refs import Ref
from pipeline.store.store import Store
from tests.pipeline.remotes.remote_parts import View, publish_chain

pytest.importorskip("moto")
NUMBERS = count(1)
CHAIN = ["sft@v1", "rm@v1", "ppo@v1"]


@pytest.fixture(scope="module")
def server():
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def bucket(server, tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    settings = {"ENDPOINT_URL": server, "ACCESS_KEY_ID": "test", "SECRET_ACCESS_KEY": "canary-of-s3", "DEFAULT_REGION": "us-east-1"}
    for name, value in settings.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    name = f"bucket-{next(NUMBERS)}"
    urllib.request.urlopen(urllib.request.Request(f"{server}/{name}", method="PUT"), timeout=60)
    return f"s3://{name}"


@pytest.fixture
def other(tmp_path):
    return Store(tmp_path / "other")


@pytest.mark.slow
def test_artifacts_go_to_s3_and_back_and_what_is_there_is_told_by_its_hash(store, publish, other, bucket):
    publish_chain(store, publish)
    remote = open_remote(f"{bucket}/team/rlhf")
    assert push(store, "ppo", remote, View()) == dict.fromkeys(CHAIN, True)
    assert push(store, "ppo", remote, View()) == dict.fromkeys(CHAIN, False)
    assert [str(ref) for ref in list_refs(remote)] == ["ppo@v1", "rm@v1", "sft@v1"]
    place = remote.place(Ref("sft", 1))
    remote.files.rm_file(f"{place}/manifest.json")
    remote.files.pipe_file(f"{place}/metrics.jsonl", b"xxx")  # of the right size, without its hash
    remote.files.pipe_file(f"{place}/model/config.json", b"{}", Metadata={"sha256": "0" * 64})
    view = View()
    assert push(store, "sft", remote, view) == {"sft@v1": True}
    assert view.num_bytes == len(b"xxx") + len(b"{}")
    assert pull(other, "ppo", remote, View()) == dict.fromkeys(CHAIN, True)
    assert all(other.verify(ref) == [] for ref in CHAIN)
    assert not remote.files.exists(f"{bucket.removeprefix('s3://')}/team/rlhf/.staging")


@pytest.mark.slow
def test_run_reuses_all_that_was_pulled(finished_run, other, bucket):
    remote = open_remote(bucket)
    push(Store(finished_run.store), "ppo", remote, View())
    pull(other, "ppo", remote, View())
    command = [sys.executable, "-P", "-m", "pipeline.cli", "run", str(finished_run.recipe_path), "--store", str(other.root)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert process.returncode == 0, process.stderr
    assert [line.split(",")[0] for line in process.stdout.splitlines() if "reused" in line][:3] == [
        "sft: reused sft@v1",
        "rm: reused rm@v1",
        "ppo: reused ppo@v1",
    ]
    assert other.refs() == ["ppo@v1", "rm@v1", "sft@v1"]


@pytest.mark.slow
def test_two_that_push_to_s3_at_once_cannot_both_win(tmp_path, publish, bucket):
    stores = [Store(tmp_path / f"store-{i}") for i in range(4)]
    for i, store in enumerate(stores):
        publish(store, "sft", {"model/model.safetensors": bytes([i]) * 1000})
    told, start = [None] * len(stores), threading.Barrier(len(stores))

    def run(i):
        remote = open_remote(f"{bucket}/x")
        start.wait(60)
        try:
            told[i] = push(stores[i], "sft", remote, View())["sft@v1"]
        except StoreError as error:
            told[i] = error

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(stores))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    (winner,) = (i for i, outcome in enumerate(told) if outcome is True)
    assert all(outcome.exit_code in (3, 5) for i, outcome in enumerate(told) if i != winner)
    pulled = Store(tmp_path / "pulled")
    pull(pulled, "sft", open_remote(f"{bucket}/x"), View())
    assert pulled.get("sft").content_id == stores[winner].get("sft").content_id


def test_what_s3_refuses_is_a_line_without_the_key(store, publish, other, bucket, monkeypatch):
    publish(store, "sft")
    with pytest.raises(StoreError, match="bucket exists") as raised:
        push(store, "sft", open_remote("s3://no-such-bucket/x"), View())
    assert raised.value.exit_code == 4 and "canary" not in raised.value.message
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(StoreError, match="credentials") as raised:
        pull(other, "sft", open_remote(f"{bucket}/x"), View())
    assert raised.value.exit_code == 5


@pytest.mark.slow
def test_a_push_and_a_pull_that_are_killed_twice_end_by_the_same_command(store, publish, other, bucket):
    """Big enough that a kill comes in between: it comes when the first data has arrived."""
    publish(store, "sft", {f"model/model-{i:02}.safetensors": os.urandom(3_000_000) for i in range(24)})
    remote = open_remote(f"{bucket}/x")
    place = remote.place(Ref("sft", 1))

    def count_sent():
        return len(remote.sizes(Ref("sft", 1)))

    def count_pulled():
        return len(list(other.root.glob(".staging/*/model/*")))

    for command, root, num_files in (("push", store.root, count_sent), ("pull", other.root, count_pulled)):
        arguments = (sys.executable, "-P", "-m", "pipeline.cli", command, "sft@v1", f"{bucket}/x", "--store", str(root))
        for _ in range(2):
            before = num_files()
            process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            ends = time.monotonic() + 120
            while num_files() <= before and process.poll() is None and time.monotonic() < ends:
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            stderr = process.communicate()[1]
            assert process.returncode == -signal.SIGKILL, f"{command} had ended before the kill: {stderr}"
            assert before < num_files() <= 24
            assert not remote.files.exists(f"{place}/manifest.json") if command == "push" else other.refs() == []
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        stdout, stderr = process.communicate(timeout=120)
        assert process.returncode == 0 and f"sft@v1: {command}ed" in stdout, stderr
    assert other.verify("sft@v1") == []
    assert list((other.root / ".staging").iterdir()) == []
