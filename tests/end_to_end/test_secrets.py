"""S11: secrets planted in the environment, in addresses and in exceptions are in no file of the store and not on the terminal."""

import os
import shutil
import subprocess
import sys

import pytest

KEY = ["b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAE", "bm9uZQAAAAAAAAABAAAAMwAAAAtzc2gtZWQy"]
ENVIRONMENT = {
    "MY_SERVICE_TOKEN": 'can"ary-énv-0a1b2c3d4e5f',
    "DB_PASSWD": "pw4canary",
    "GITHUB_PAT": "cnry7x",
    "OPENAI_KEY": "canaryopenaikey0815",
    "SSH_KEY": "\n".join(["-----BEGIN OPENSSH PRIVATE KEY-----", *KEY, "-----END OPENSSH PRIVATE KEY-----"]),
    "DATABASE_URL": "postgres://me:canaryinurl@db.example/x",
    "HTTPS_PROXY": "http://me:canaryinproxy@proxy.example:3128",
    "GIT_CONFIG_COUNT": "1",
    "GIT_CONFIG_KEY_0": "remote.origin.url",
    "GIT_CONFIG_VALUE_0": "https://me:canaryinremote@git.example/x",
    "A_TOKEN": "1",
    "B_KEY": "sampled",
    "C_SECRET": "true",
}
SHAPES = [
    "hf_canary0815canary0815",
    "ghp_canary0815canary0815",
    "glpat-canary0815canary",
    "xoxb-123-canary0815",
    "AKIACANARY0815CANARY",
    "sk-proj-canary0815canary",
    "eyJjYW5hcnkwODE1.eyJjYW5hcnkwODE1.c2lnbmF0dXJl",
    "https://me:canaryhere@host/x?api_key=canaryhere&X-Amz-Signature=canaryhere",
]
NEEDLES = [
    "canary", "CANARY", "cnry7x", "ary-", "eyJjYW5hcnk", *KEY,
]  # fmt: skip
JUDGE = """
import os, sys

LEAKS = {shapes!r} + [os.environ[name] for name in {names!r}]


def leak(stream):
    for text in LEAKS:
        print("a library says", text, file=stream)
    os.write(stream.fileno(), ("from C: " + " ".join(LEAKS[:2]) + chr(10)).encode())


def judge(prompt, response, finished):
    program = sys.modules["__main__"]
    if hasattr(program, "write_samples"):
        leak(sys.stdout)
        leak(sys.stderr)
        if os.environ.get("FAILS"):
            def fail(path, rows):
                raise RuntimeError("cannot reach " + ", ".join(LEAKS))
            program.write_samples = fail
        elif os.environ.get("RAISES"):
            raise RuntimeError("cannot reach " + ", ".join(LEAKS))
        write = program.write_samples
        def plant(path, rows):
            write(path, [row | {{"response": LEAKS[0], LEAKS[1]: LEAKS[-1]}} for row in rows])
        program.write_samples = plant
    return {{"score": 1.0, "of " + LEAKS[0]: 1.0}}
"""
LEAKED = ["MY_SERVICE_TOKEN", "DB_PASSWD", "GITHUB_PAT", "OPENAI_KEY", "SSH_KEY", "DATABASE_URL", "HTTPS_PROXY"]


def found_in(content):
    return [needle for needle in NEEDLES if needle.encode() in content]


@pytest.mark.slow
@pytest.mark.parametrize(("switch", "exit_code"), [({}, 0), ({"RAISES": "1"}, 0), ({"FAILS": "1"}, 1)], ids=["runs", "judge", "fails"])
def test_no_secret_reaches_the_store_or_the_terminal(make_pipeline, recipe, tmp_path, switch, exit_code):
    (tmp_path / "planted.py").write_text(JUDGE.format(shapes=SHAPES, names=LEAKED))
    options = ("--until", "sft", "--set", "judge=planted:judge", "--set", f"judge_directory={tmp_path}")
    pipeline = make_pipeline(tmp_path / "run", *options, "--set", "sft.epochs=1", warm=True, **ENVIRONMENT, **switch)
    process = pipeline.start()
    assert process.wait(timeout=300) == exit_code, pipeline.output_path.read_text()
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "planted.py" and path.suffix != ".pyc"]
    leaking = {str(path.relative_to(tmp_path)): found for path in files if (found := found_in(path.read_bytes()))}
    assert leaking == {}
    logs = [path.read_text() for path in files if path.name == "log.txt"]
    assert logs and all("a library says ***" in log and "from C: *** ***" in log for log in logs)
    terminal = pipeline.output_path.read_text()
    if exit_code == 0:
        samples = next(path.read_text() for path in files if path.name == "samples.jsonl")
        assert '"way": "sampled"' in samples, "an ordinary word that some variable has as its value"
        shown = subprocess.run(
            [sys.executable, "-m", "pipeline.cli", "show", "sft", "--store", str(pipeline.store_root)],
            capture_output=True,
            env={**os.environ, **ENVIRONMENT},
        )
        assert shown.returncode == 0 and found_in(shown.stdout + shown.stderr) == []
    else:
        assert "error: sft: RuntimeError: cannot reach ***" in terminal and "Traceback" in terminal
    shutil.rmtree(pipeline.store_root)
