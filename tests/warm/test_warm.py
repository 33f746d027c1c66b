"""What starts by the warm server is, for whoever started it, a process like any other."""

import json
import signal
import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.slow  # only slow tests start stages, and the server itself takes ten seconds


@pytest.fixture
def start(tmp_path, warm_start):
    """start(source, *arguments, **environment): a Python process of that source."""

    def start(source, *arguments, **environment):
        program = tmp_path / "test_driver.py"
        program.write_text("import os, signal, sys, time\nfrom pathlib import Path\n" + textwrap.dedent(source))
        command = [sys.executable, "-u", str(program), *arguments]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path, env={**warm_start(), **environment}
        )

    return start


def test_it_gets_the_arguments_the_environment_the_directory_and_the_streams_and_has_its_imports(start, tmp_path):
    source = """
        import json
        ready = "torch" in sys.modules and "trl" in sys.modules
        print(json.dumps([ready, sys.argv[1:], os.environ["MINE"], os.environ.get("PYTEST_CURRENT_TEST"), str(Path.cwd())]))
    """
    output, _ = start(source, "a", "b c", MINE="yes", PYTEST_CURRENT_TEST="now").communicate(timeout=60)
    assert json.loads(output) == [True, ["a", "b c"], "yes", "now", str(tmp_path)]


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("pass", 0),
        ("sys.exit(3)", 3),
        ("sys.exit('why')", 1),
        ("raise ValueError('why')", 1),
        ("os._exit(7)", 7),
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
    ],
)
def test_it_ends_as_its_program_ends(start, source, code):
    process = start(source)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == code and ("why" in output) == ("why" in source)


def test_it_hears_signals(start):
    process = start("signal.signal(signal.SIGTERM, lambda *_: sys.exit(9))\nprint('ready')\ntime.sleep(600)")
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 9


def test_when_it_is_killed_its_program_is_gone_before_the_next_one_starts(start, tmp_path):
    process = start("print(os.getpid())\ntime.sleep(600)")
    program = int(process.stdout.readline())
    assert program != process.pid
    process.kill()
    process.wait()
    output, _ = start(f"print(Path('/proc/{program}').exists())").communicate(timeout=60)
    assert output == "False\n"
