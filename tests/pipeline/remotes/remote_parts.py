"""What the tests of push and pull share: a chain of artifacts, a file system that fails at the n-th call, a view that says nothing."""

import hashlib
from pathlib import Path, PurePosixPath
from threading import Lock

from fsspec.implementations.memory import MemoryFileSystem

from pipeline.remotes.errors import CHUNK_BYTES
from pipeline.remotes.remote import Remote
from pipeline.store.manifest import MANIFEST_FILE, Parent, parse_sealed


def publish_chain(store, publish, seed=b""):
    """Publish sft, rm on it, ppo on both."""
    sft = publish(store, "sft", _files(b"sft" + seed), cache_key="sft-key")
    rm = publish(store, "rm", _files(b"rm" + seed), parents=_parents(sft))
    return publish(store, "ppo", _files(b"ppo" + seed), parents=_parents(rm, sft))


def _files(content):
    return {"model/config.json": b"{}", "model/model.safetensors": content * 1000, "log.txt": b"", "metrics.jsonl": content}


def _parents(*artifacts):
    return [Parent(ref=artifact.ref, content_id=artifact.content_id) for artifact in artifacts]


class View:
    def __init__(self):
        self.num_bytes = 0
        self._lock = Lock()

    def started(self, text, num_bytes):
        pass

    def moved(self, num_bytes):
        with self._lock:
            self.num_bytes += num_bytes


class FailingFiles(MemoryFileSystem):
    """Files in memory; the call number `fail_at` fails, and leaves half of what it wrote."""

    cachable = False

    def __init__(self):
        super().__init__()
        self.store, self.pseudo_dirs = {}, [""]
        self.num_calls, self.fail_at, self.sent = 0, None, []
        self._lock = Lock()

    def _tick(self):
        with self._lock:
            self.num_calls += 1
            if self.num_calls == self.fail_at:
                raise OSError(5, "the connection broke")

    def put_file(self, lpath, rpath, **kwargs):
        try:
            self._tick()
        except OSError:
            content = Path(lpath).read_bytes()
            MemoryFileSystem.pipe_file(self, rpath, content[: len(content) // 2])
            raise
        self.sent.append(rpath)
        super().put_file(lpath, rpath, **kwargs)

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        self._tick()
        super().pipe_file(path, value, mode, **kwargs)

    def find(self, *args, **kwargs):
        self._tick()
        return super().find(*args, **kwargs)

    def ls(self, path, detail=True, **kwargs):
        if not kwargs.pop("inner", False):
            self._tick()
        return super().ls(path, detail, **kwargs)

    def rm_file(self, path):
        self._tick()
        super()._rm(path)

    def _open(self, path, mode="rb", **kwargs):
        if mode == "rb":
            self._tick()
            return _Reading(super()._open(path, mode, **kwargs).getvalue(), self._tick)
        return super()._open(path, mode, **kwargs)


class _Reading:
    """Content that is read; each piece is a call."""

    def __init__(self, content, tick):
        self._content, self._tick = content, tick

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def read(self, size=-1):
        self._tick()
        size = 900 if size == CHUNK_BYTES else len(self._content)
        piece, self._content = self._content[:size], self._content[size:]
        return piece


def memory_remote():
    files = FailingFiles()
    return Remote("memory://remote", "memory", files, "/remote"), files


def find_broken(files):
    """Compare every manifest in memory with its data; return the paths that are missing or differ."""
    broken = []
    for path, file in list(files.store.items()):
        if PurePosixPath(path).name == MANIFEST_FILE:
            for entry in parse_sealed(file.getvalue())[0].files:
                data = files.store.get(str(PurePosixPath(path).parent / entry.path))
                if data is None or hashlib.sha256(data.getvalue()).hexdigest() != entry.sha256:
                    broken.append(f"{path}: {entry.path}")
    return broken
