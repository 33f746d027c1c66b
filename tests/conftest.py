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

from tests.waiting import wait_until

ROOT = Path(__file__).parents[1]


def pytest_xdist_auto_num_workers(config):
    """One worker more than cores where slow tests are among them: a fifth of their time they wait for silences, kills and processes."""
    available = len(os.sched_getaffinity(0))
    return min(psutil.cpu_count(logical=False) or available, available) + (config.getoption("markexpr") != "not slow")


@pytest.fixture(scope="session")
def warm_start(tmp_path_factory):
    """warm_start(): an environment in which a stage's program starts without importing everything anew; see tests/warm/server.py."""
    server = ROOT / "tests" / "warm" / "server.py"
    # All workers share a server, which lives as long as the process that started them.
    shared = "PYTEST_XDIST_WORKER" in os.environ
    directory = tmp_path_factory.getbasetemp().parent if shared else tmp_path_factory.getbasetemp()
    path, started = directory / "warm", directory / "warm.started"

    mine = []

    def start():
        with suppress(FileExistsError):  # by the first test that needs it
            started.touch(exist_ok=False)
            command = [sys.executable, "-P", str(server), str(path), str(os.getppid() if shared else os.getpid())]
            environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "0"}
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
    """The embedded demo's files: records and base model."""
    from data.demo.materialize import write_demo

    directory = tmp_path_factory.mktemp("demo")
    write_demo(directory, seed=7)
    return directory


@pytest.fixture(scope="session")
def base_model_dir(demo_dir):
    """The demo's base model: a Llama of 0.57 M parameters, random weights, with its tokenizer."""
    return demo_dir / "base"


def pytest_collection_modifyitems(items):
    """Begin with the files that take minutes: at the end one worker would be left alone with them."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection():
    """Collect no garbage while test files are imported, which leave none."""
    gc.disable()


def pytest_collection_finish():
    """Leave imports out of garbage collection: with torch in memory each one takes half a second, and trainers ask for many."""
    gc.collect()
    gc.freeze()
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
