"""Python imports this at its start when `tests/warm/hook` is on its path: a stage's program is then run by the warm server.

All else (launchers on other nodes, any other program) starts as ever; `rlhf` itself too, but where RLHF_TEST_WARM_COMMANDS says so. See
`tests/warm/server.py`.
"""

import os
import sys


def find_program(argv):
    """Say (module, argv of the program) of `python [-P -u ...] -m MODULE ...` or `python [...] DRIVER.py ...`; None: not for the server."""
    words = iter(range(1, len(argv)))
    for place in words:
        if argv[place] == "-m":
            module = argv[place + 1]
            served = (
                "stages.",
                "torch.distributed.run",
                "tests.bench.",
                "tests.gpu.rank",
                *(["pipeline.cli"] if "RLHF_TEST_WARM_COMMANDS" in os.environ else []),
            )
            return (module, argv[place + 1 :]) if module.startswith(served) else None
        if not argv[place].startswith("-"):
            return (None, argv[place:]) if argv[place].endswith("_driver.py") else None
    return None


def hand_over(module, argv):
    """Have the server run it, and end as it ends."""
    import json
    import signal
    import socket
    from pathlib import Path

    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(os.environ["RLHF_TEST_WARM"])

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: connection.send(str(int(number)).encode()))
    request = {"module": module, "argv": argv, "environment": dict(os.environ), "directory": str(Path.cwd()), "pid": os.getpid()}
    socket.send_fds(connection, [json.dumps(request).encode()], [0, 1, 2])
    answer = connection.recv(16)
    if not answer:
        os.write(2, b"the warm server is gone\n")
        os._exit(1)
    code = int(answer)
    if code < 0:  # killed by a signal: so are we
        signal.signal(-code, signal.SIG_DFL) if -code not in (signal.SIGKILL, signal.SIGSTOP) else None
        os.kill(os.getpid(), -code)
    os._exit(code)


if "RLHF_TEST_WARM" in os.environ:
    program = find_program(sys.orig_argv)
    if program is not None:
        hand_over(*program)
