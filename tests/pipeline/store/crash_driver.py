"""Publish under `kill -9` at every mutating call, one real child process per call. Run as a script: crash_driver.py DIRECTORY.

Each child counts its calls of open-for-writing, mkdir, fsync, rename, replace, unlink, rmdir, chmod and kills itself before or after
the n-th. Prints JSON: {"calls": [names of an undisturbed run], "stores": [{"store", "num_before", "moment", "call", "printed"}]}.
"""

import builtins
import io
import json
import os
import signal
import sys
import threading
from pathlib import Path

from pipeline.store.manifest import ManifestFields
from pipeline.store.store import Store

FILES = {"model/config.json": b"{}", "model/model-1.safetensors": b"w" * 5000, "model/model-2.safetensors": b"v", "log.txt": b"done\n"}


def publish(root, printed=None):
    """What a pipeline does with the store for one stage; returns the ref."""
    store = Store(root)
    with store.staging("sft") as staging:
        for name, content in FILES.items():
            path = staging.path / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        artifact = store.publish(staging, ManifestFields(cache_key="same"))
        if printed:
            os.write(printed, artifact.ref.encode())
    store.set_alias("sft", "best", artifact.ref, by="test")
    return artifact.ref


def intercept(on_call):
    """Call `on_call(name, moment)` around every mutating call of this process."""

    def around(name, function, counts=lambda *args, **kwargs: True):
        def wrapper(*args, **kwargs):
            if not counts(*args, **kwargs):
                return function(*args, **kwargs)
            on_call(name, "before")
            try:
                return function(*args, **kwargs)
            finally:
                on_call(name, "after")

        return wrapper

    for name in ("mkdir", "fsync", "rename", "replace", "unlink", "rmdir", "chmod"):
        setattr(os, name, around(name, getattr(os, name)))
    os.open = around("open", os.open, lambda path, flags, *args, **kwargs: flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    io.open = builtins.open = around("open", io.open, lambda file, mode="r", *args, **kwargs: set(mode) & set("wax+"))


def run_child(root, moment, number):
    """Fork a child that dies at one call; return its wait status, and the ref it printed before."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        count = 0
        lock = threading.Lock()  # files are hashed in threads

        def on_call(name, when):
            nonlocal count
            with lock:
                count += when == moment
                if count == number and when == moment:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            intercept(on_call)
            publish(root, writer)
        except BaseException:
            os._exit(1)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        printed = stream.read().decode()
    return os.waitpid(child, 0)[1], printed


def count_calls(root):
    """Name the mutating calls of an undisturbed run."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        names = []
        intercept(lambda name, when: names.append(name) if when == "before" else None)
        publish(root)
        os.write(writer, json.dumps(names).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        names = json.loads(stream.read())
    os.wait()
    return names


def main(directory):
    calls, stores = [], []
    for num_before in (0, 1):

        def prepare(name, num_before=num_before):
            root = directory / f"{name}-onto-{num_before}"
            for _ in range(num_before):
                publish(root)
            return root

        names = count_calls(prepare("undisturbed"))
        calls += names
        for moment in ("before", "after"):
            for number, call in enumerate(names, start=1):
                root = prepare(f"{moment}-{number:03d}")
                status, printed = run_child(root, moment, number)
                assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, (moment, number, call, status)
                stores.append({"store": str(root), "num_before": num_before, "moment": moment, "call": call, "printed": printed})
    print(json.dumps({"calls": calls, "stores": stores}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
