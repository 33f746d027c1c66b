"""The store under load: a thousand artifacts and a model of 1 GB, on this machine's disk.

    .venv/bin/python -m tests.bench.store                     the figures of tests/bench/README.md, in some minutes
    .venv/bin/python -m tests.bench.store --artifacts 100 --megabytes 100

`ls` and `plan` are processes of their own; their processor time counts, start and imports included. A publish and a verify are compared
with what nobody can save: writing the bytes, making them durable, hashing them once.
"""

import argparse
import hashlib
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from pipeline.store.manifest import ManifestFields
from pipeline.store.store import Store

_BLOCK = os.urandom(1_000_000)
_NO_FIELDS = ManifestFields.model_validate({})
_KINDS = ("sft", "rm", "ppo")
# As many files, figures and settings as the demo's policy has.
_FILES = [f"model/part-{number:02d}.json" for number in range(30)]
_FIELDS = {
    "metrics": {f"eval/figure_{number}": number / 7 for number in range(60)},
    "config": {"ppo": {f"setting_{number}": number for number in range(80)}},
}


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.store", description="Measure the store; see tests/bench/store.py.")
    parser.add_argument("--artifacts", type=int, default=1000, help="how many the listed store has (default 1000)")
    parser.add_argument("--megabytes", type=int, default=1000, help="size of the published model (default 1000)")
    parser.add_argument("--repeats", type=int, default=3, help="of each measurement; the median counts (default 3)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-store-") as directory:
        for line in [
            *measure_listing(Path(directory) / "many", arguments.artifacts, arguments.repeats),
            *measure_publish(Path(directory) / "large", arguments.megabytes, arguments.repeats),
        ]:
            print(line)


def measure_listing(root: Path, num_artifacts: int, repeats: int) -> list[str]:
    """Measure the commands that read all manifests."""
    store = Store(root)
    for number in range(num_artifacts):
        publish_small(store, _KINDS[number % len(_KINDS)], f"{number:064x}")
    before = count_work(["ls", "--store", str(root / "none")])
    lines = [f"{num_artifacts:,} artifacts of {len(_FILES)} files:"]
    for arguments in (["ls"], ["ls", "--json"], ["plan", "demo"]):
        command = [*arguments, "--store", str(root)]
        used = [_run_command(command) for _ in range(repeats)]
        after = count_work(command)
        work = f"opens {after[0] - before[0]:,} files more than of an empty store, reads {(after[1] - before[1]) / 1e6:.1f} MB more"
        lines.append(f"  rlhf {' '.join(arguments):<10} {statistics.median(used):.2f} s of processor time in user mode; {work}")
    return lines


def count_work(arguments: list[str]) -> tuple[int, int]:
    """Count how many files and directories a command opens, and how many bytes it reads; the same each time, however fast the machine."""
    done = subprocess.run(
        [sys.executable, "-c", _COUNTED, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=True
    )
    num_opened, num_bytes = done.stderr.splitlines()[-1].split()
    return int(num_opened), int(num_bytes)


_COUNTED = """
import sys
opened = []
sys.addaudithook(lambda event, _: opened.append(0) if event == "open" else None)
from pipeline.cli import main
try:
    main()
finally:
    read = next(line for line in open("/proc/self/io") if line.startswith("rchar")).split()[1]
    print(len(opened), read, file=sys.stderr)
"""


def measure_publish(root: Path, megabytes: int, repeats: int) -> list[str]:
    """Measure a publish and a verify of one large file, in turns with the writing and hashing that both stand on."""
    root.mkdir(parents=True)
    store = Store(root / "store")
    figures: dict[str, list[float]] = {"over": [], "processor": [], "verify": [], "small": []}
    for _ in range(repeats):
        plain = root / "plain"
        _write(plain, megabytes)
        floor = _time(lambda path=plain: _sync_and_hash(path))
        plain.unlink()
        with store.staging("sft") as staging:
            _write(staging.path / "model.safetensors", megabytes)
            published = _time(lambda staging=staging: store.publish(staging, _NO_FIELDS))
        figures["over"].append(published[0] - floor[0])
        figures["processor"].append(published[1] - floor[1])
        figures["verify"].append(megabytes / 1000 / _time(lambda: store.require_verified("sft"))[1])
        with store.staging("rm") as staging:
            (staging.path / "model.safetensors").write_bytes(_BLOCK)
            figures["small"].append(_time(lambda staging=staging: store.publish(staging, _NO_FIELDS))[0])
    median = {name: statistics.median(values) for name, values in figures.items()}
    return [
        f"a model of {megabytes:,} MB:",
        f"  publish      over fsync and sha256 of a file like it {median['over']:+.2f} s, of the processor {median['processor']:+.2f} s",
        f"  verify       {median['verify']:.2f} GB per second of processor time",
        f"one of 1 MB:   published in {median['small']:.3f} s",
    ]


def publish_small(store: Store, kind: str, key: str | None) -> None:
    """Publish an artifact of small files."""
    with store.staging(kind) as staging:
        (staging.path / "model").mkdir()
        for name in _FILES:
            (staging.path / name).write_text(f"{key} {name}", encoding="utf-8")
        store.publish(staging, ManifestFields.model_validate(_FIELDS | {"cache_key": key}))


def _run_command(arguments: list[str]) -> float:
    before_s = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    subprocess.run([sys.executable, "-m", "pipeline.cli", *arguments], stdout=subprocess.DEVNULL, check=True)
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before_s


def _write(path: Path, megabytes: int) -> None:
    with path.open("wb") as stream:
        for _ in range(megabytes):
            stream.write(_BLOCK)


def _sync_and_hash(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
        hashlib.file_digest(stream, "sha256")


def _time(work: Callable[[], object]) -> tuple[float, float]:
    """Return seconds by the clock, and of the processor."""
    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start_s, time.process_time() - start_cpu_s


if __name__ == "__main__":
    main()
