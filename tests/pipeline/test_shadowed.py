"""A package of the user's with the name of one of ours is told in one line."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["data/__init__.py", "stages.py"])
def test_a_module_of_the_users_that_hides_a_package_of_ours_is_told_in_one_line(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = subprocess.run([sys.executable, "-P", "-m", "pipeline.cli", "--help"], env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    package = name.partition("/")[0].removesuffix(".py")
    assert done.stderr == (
        f"PYTHONPATH: found {tmp_path / name}, which hides the package {package} of rlhf; needed another name, or none on PYTHONPATH; "
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
