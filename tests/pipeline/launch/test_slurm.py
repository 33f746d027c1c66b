"""What is submitted to SLURM; the jobs themselves run in tests/end_to_end/slurm."""

import subprocess
import sys

import pytest

from pipeline.errors import SlurmError
from pipeline.launch.slurm import render_script, run_by_slurm, write_script
from stages.blocks import HardwareSettings


def test_a_batch_script_asks_for_what_the_hardware_block_says(tmp_path):
    hardware = HardwareSettings(nodes=2, processes=4, device="cuda", threads=3, sbatch=["--partition=gpu"])
    script = render_script(hardware, "rm", tmp_path / "rm.out", "rlhf-rm-1", ["my recipe.yaml", "--set", "seed=3"])
    options = {line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH")}
    assert {"--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=4", "--cpus-per-task=12", "--requeue", "--partition=gpu"} <= options
    assert f"{sys.executable} -P -m pipeline.cli run 'my recipe.yaml' --set seed=3 --only rm &" in script
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0


def test_a_batch_script_that_somebody_made_their_own_is_left_as_it_is(tmp_path):
    given = (HardwareSettings(), "sft", tmp_path, tmp_path / "sft.out", "name")
    path = write_script(*given, ["demo"])
    assert write_script(*given, ["demo", "--force"]).read_text().count("--force") == 1
    lines = [line for line in path.read_text().splitlines() if "delete this line" not in line]
    path.write_text("\n".join([*lines, "# mine"]))
    write_script(*given, ["demo"])
    assert path.read_text().endswith("# mine") and "--force" in path.read_text()


def test_without_slurm_here_the_option_is_a_mistake_and_what_slurm_refuses_is_not(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SlurmError, match=r"^squeue: found no such command, needed SLURM's; run on a login node") as caught:
        run_by_slurm(HardwareSettings(), tmp_path / "store", ["sft"], ["demo"], print)
    assert caught.value.exit_code == 2
    (tmp_path / "squeue").write_text("#!/bin/sh\n")
    (tmp_path / "sbatch").write_text("#!/bin/sh\necho no such partition >&2\nexit 1\n")
    for name in ("squeue", "sbatch"):
        (tmp_path / name).chmod(0o755)
    with pytest.raises(SlurmError, match=r"^sbatch: no such partition; mend it, perhaps by hardware.sbatch$") as caught:
        run_by_slurm(HardwareSettings(), tmp_path / "store", ["sft"], ["demo"], print)
    assert caught.value.exit_code == 5
