"""What is submitted to SLURM; the jobs themselves run in tests/end_to_end/slurm."""

import re
import subprocess
import sys

import pytest
from pydantic import ValidationError

from pipeline.errors import ConfigError, SlurmError
from pipeline.launch.slurm import read_exit_code, read_fields, render_script, run_by_slurm, write_script
from stages.blocks import HardwareSettings


def test_a_batch_script_asks_for_what_the_hardware_block_says(tmp_path):
    hardware = HardwareSettings(nodes=2, processes=4, device="cuda", threads=3, sbatch=["--partition=gpu"])
    script = render_script(hardware, "rm", tmp_path / "rm.out", "rlhf-rm-1", ["my recipe.yaml", "--set", "seed=3"])
    options = {line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH")}
    assert {"--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=4", "--cpus-per-task=12", "--requeue", "--partition=gpu"} <= options
    assert f"{sys.executable} -P -m pipeline.cli run 'my recipe.yaml' --set seed=3 --only rm &" in script
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0


@pytest.mark.parametrize("name", ["a b", 'quo"te', "it's", "$(touch x)", "`touch x`", "100%j", "a#b", "日本"])
def test_no_name_of_a_store_breaks_out_of_its_line_of_the_script(name, tmp_path):
    """S12: what sbatch reads of the line, with a backslash before what means something, is the path."""
    output = tmp_path / name / "sft.out"
    script = render_script(HardwareSettings(), "sft", output, "rlhf-sft-1", [f"{name}.yaml"])
    (line,) = [line for line in script.splitlines() if "--output" in line]
    assert re.sub(r"\\(.)", r"\1", line).replace("%%", "%") == f"#SBATCH --output={output}"
    assert not re.search(r"(?<!\\)[\s\"'#$`()]", line.removeprefix("#SBATCH "))
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0


@pytest.mark.parametrize("name", ["a\nb", "a\n#SBATCH --wrap=x", "a\\b", "a\x1b[2J", "a\u2028b"])
def test_a_path_that_sbatch_would_read_as_another_is_refused_before_anything_is_written(name, tmp_path):
    with pytest.raises(ConfigError) as caught:
        run_by_slurm(HardwareSettings(), tmp_path / name, ["sft"], ["demo"], pytest.fail)
    (message,) = caught.value.problems
    assert message.startswith("--store: found ") and "choose another store" in message and message.isprintable()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["--comment=a\nrm -rf /", "--time=1\r", "partition=gpu", "", "#SBATCH -n 1", "--a\x00b", "-p\u2028x"])
def test_an_option_that_is_no_option_on_one_line_is_refused(option):
    with pytest.raises(ValidationError, match="needed options of sbatch on one line each"):
        HardwareSettings(sbatch=["--exclusive", option])


def test_a_remote_shell_with_an_open_quote_is_refused():
    with pytest.raises(ValidationError, match="close the quotes"):
        HardwareSettings(remote_shell="ssh 'x {host} {command}")


@pytest.mark.parametrize(
    ("printed", "said"),
    [
        ({"sbatch": "echo"}, "sbatch: found '', needed the number of a job"),
        ({"sbatch": "echo no job for you"}, "sbatch: found 'no job for you', needed the number of a job"),
        ({"squeue": r"printf '\377\n'"}, "squeue: found '\ufffd', needed the number of a job"),
        ({"sbatch": "echo 47", "scontrol": "echo nothing"}, "scontrol: found no JobState of job 47"),
    ],
)
def test_what_slurm_prints_is_checked(printed, said, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    for name in ("squeue", "sbatch", "scontrol"):
        (tmp_path / name).write_text(f"#!/bin/sh\n{printed.get(name, '')}\n")
        (tmp_path / name).chmod(0o755)
    with pytest.raises(SlurmError) as caught:
        run_by_slurm(HardwareSettings(), tmp_path / "store", ["sft"], ["demo"], lambda line: None)
    assert str(caught.value).startswith(said) and caught.value.exit_code == 5


@pytest.mark.parametrize(
    ("text", "code"), [("ExitCode=3:0", 3), ("ExitCode=0:15", 1), ("ExitCode=999:0", 1), ("ExitCode=x", 1), ("", 1), ("ExitCode=²:0", 1)]
)
def test_the_exit_code_of_a_job_is_read_or_1(text, code):
    assert read_exit_code(read_fields(text)) == code


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
