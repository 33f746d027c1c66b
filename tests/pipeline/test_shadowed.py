"""A package of the user's with the name of one of ours is told in one line."""

import os
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
