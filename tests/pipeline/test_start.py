"""Packages of the user's with the names of ours."""

import os
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


SCRIPT = "import sys; from rlhf_start import main; sys.exit(main())"  # as pip writes it, by [project.scripts]
FIND = """import os, subprocess, sys
from importlib.util import find_spec
import rlhf_start
names = "stages.sft", "pipeline.launch.node", "data.schema"
find = "import sys; from importlib.util import find_spec; print(*(find_spec(name).origin for name in sys.argv[1:]), sep=chr(10))"
subprocess.run([sys.executable, "-P", "-c", find, *names], check=True)  # a stage, by the environment that it inherits
subprocess.run([sys.executable, "-c", "import own; print(own.__file__)"], check=True)
"""


@pytest.fixture
def project(tmp_path):
    """A directory of the user's with packages of our names, and a module of their own."""
    for name in ("data", "stages", "pipeline"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('of the user')")
    (tmp_path / "own.py").touch()
    return tmp_path


def start_in(project, *arguments, path="{project}{sep}{root}"):
    environment = os.environ | {"PYTHONPATH": path.format(project=project, sep=os.pathsep, root=ROOT)}
    command = [sys.executable, "-P", *arguments]
    return subprocess.run(command, env=environment, cwd=project, capture_output=True, text=True)


def test_the_installed_command_begins_under_a_name_that_nobody_else_has():
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"] == {"rlhf": "rlhf_start:main"}


@pytest.mark.parametrize("path", ["{project}{sep}{root}", "{sep}{root}"])  # an empty entry is the working directory
def test_packages_of_the_users_with_our_names_hide_nothing(project, path):
    done = start_in(project, "-c", SCRIPT, "--help", path=path)
    assert (done.returncode, done.stderr) == (0, "") and "check-data" in done.stdout


def test_what_it_starts_finds_ours_too_and_all_else_of_the_users(project):
    done = start_in(project, "-c", FIND)
    ours = [str(ROOT / path) for path in ("stages/sft.py", "pipeline/launch/node.py", "data/schema.py")]
    assert (done.returncode, done.stderr, done.stdout.splitlines()) == (0, "", [*ours, str(project / "own.py")])


@pytest.mark.parametrize("name", ["data/__init__.py", "stages.py"])
def test_one_that_would_hide_an_installed_package_of_ours_is_told_in_one_line(tmp_path, name):
    project, installed = tmp_path / "project", tmp_path / "site-packages"
    (project / name).parent.mkdir(parents=True)
    (project / name).touch()
    installed.mkdir()
    (installed / "pipeline").mkdir()
    for place in (installed, installed / "pipeline"):
        shutil.copy(ROOT / "pipeline/rlhf_start.py", place)
    shutil.copytree(ROOT / "data", installed / "data", ignore=shutil.ignore_patterns("__pycache__"))
    environment = os.environ | {"PYTHONPATH": f"{project}{os.pathsep}{installed}"}
    done = subprocess.run([sys.executable, "-P", "-c", SCRIPT], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"PYTHONPATH: found {project / name}, which hides a package of rlhf; needed another name, or none on PYTHONPATH; "
        "rename it, or start rlhf without that entry\n"
    )


def test_a_folder_of_that_name_that_is_no_package_hides_nothing(tmp_path):
    (tmp_path / "data").mkdir()
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    code = "import pipeline.cli, data.schema; print(data.schema.__file__)"
    done = subprocess.run([sys.executable, "-P", "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == str(ROOT / "data" / "schema.py")


@pytest.mark.parametrize(
    ("started", "code", "told"), [("/usr/bin/rlhf", -signal.SIGINT, ""), ("/usr/bin/other", -signal.SIGINT, "KeyboardInterrupt\n")]
)
def test_ctrl_c_while_modules_are_imported_ends_rlhf_without_a_traceback_and_no_other_program_that_imports_it(started, code, told):
    source = f"import os, signal, sys; sys.argv = [{started!r}]; import pipeline.quiet_start; os.kill(os.getpid(), signal.SIGINT)"
    done = subprocess.run([sys.executable, "-P", "-c", source], capture_output=True, text=True, preexec_fn=hear_ctrl_c)
    assert done.returncode == code and (done.stderr == "" if not told else done.stderr.endswith(told))


def hear_ctrl_c():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has its jobs in the background ignore it
