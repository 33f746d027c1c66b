"""What tests of several packages share: a tiny base model with a real tokenizer, built once per run."""

import gc
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# One test worker per core: a second thread each would only make them wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import psutil
import pytest

from data.system.limits import count_cores
from tests.waiting import wait_until

ROOT = Path(__file__).parents[1]
# Files of over two minutes each. Those of one or two tests last: whoever takes such a file is dealt the one after it at once.
LONGEST = [
    "learning/test_demo.py",
    "stages/test_zero.py",
    "stages/test_families.py",
    "end_to_end/test_nodes.py",
    "end_to_end/test_kill.py",
]


def pytest_xdist_auto_num_workers(config):
    """One worker more than cores where slow tests are among them: a fifth of their time they wait for silences, kills and processes."""
    available = count_cores()
    return min(psutil.cpu_count(logical=False) or available, available) + (config.getoption("markexpr") != "not slow")


def shared_directory(tmp_path_factory):
    """The directory of all workers of a run; without workers the one of this process."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


def claim(path):
    """Whether nobody else of this run has claimed to make what will lie there."""
    with suppress(FileExistsError):
        path.with_name(f"{path.name}.claimed").touch(exist_ok=False)
        return True
    return False


@pytest.fixture(scope="session")
def warm_start(tmp_path_factory):
    """warm_start(): an environment in which a stage's program starts without importing everything anew; see tests/warm/server.py."""
    from pipeline.launch.environment import allocator_settings

    server = ROOT / "tests" / "warm" / "server.py"
    # All workers share a server, which lives as long as the process that started them.
    tests = os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()
    path, mine = shared_directory(tmp_path_factory) / "warm", []

    def start():
        if claim(path):  # the first test that needs it
            command = [sys.executable, "-P", str(server), str(path), str(tests)]
            environment = {**allocator_settings(), **os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "0"}
            mine.append(subprocess.Popen(command, env=environment, start_new_session=True))
        wait_until(lambda: path.exists() or any(process.poll() is not None for process in mine), 240)
        assert path.exists(), "the warm server has ended"
        hook = os.pathsep.join([str(server.parent / "hook"), str(ROOT)])
        return {**os.environ, "PYTHONPATH": hook, "RLHF_TEST_WARM": str(path)}

    return start


@pytest.fixture
def warm(warm_start, monkeypatch):
    """Programs of stages that this test's process starts, whoever starts them, begin with their imports done."""
    for name, value in warm_start().items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="session")
def demo_dir(tmp_path_factory):
    """The embedded demo's files: records and base model, made once for all workers."""
    from data.demo.materialize import write_demo

    directory = shared_directory(tmp_path_factory) / "demo"
    if claim(directory):
        draft = directory.with_name("demo.draft")
        write_demo(draft, seed=7)
        draft.rename(directory)
    wait_until(directory.exists, 240)
    return directory


@pytest.fixture(scope="session")
def base_model_dir(demo_dir):
    """The demo's base model: a Llama of 0.57 M parameters, random weights, with its tokenizer."""
    return demo_dir / "base"


def pytest_collection_modifyitems(items):
    """Begin with the files that take minutes, the longest first: at the end one worker would be left alone with them."""
    longest = {ROOT / "tests" / name: place for place, name in enumerate(LONGEST)}
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (longest.get(item.path, len(longest)), item.path not in slow))


def pytest_collection():
    """Collect no garbage while test files are imported, which leave none."""
    gc.disable()


def pytest_collection_finish():
    """Leave imports out of garbage collection: with torch in memory each one takes half a second, and trainers ask for many.

    And collect after 10,000 new objects instead of 700: there are many more here that stay, which each collection looks through.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)
    gc.enable()


@pytest.fixture(scope="session")
def browser():
    """Debian's Chromium, headless; one for all tests of a process, which can hold one alone."""
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("needs chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"] if os.geteuid() == 0 else [])
        yield chromium
        chromium.close()
