"""A process that has imported what a stage imports, and forks itself for each stage that a test starts.

    python tests/warm/server.py SOCKET PID        serves until that process, which runs the tests, is gone

Importing torch, transformers, TRL and peft takes a stage six CPU seconds, the stages of the tests mostly less. With `hook/` on its
PYTHONPATH a Python that was told to run a stage's program sends its command line, its environment and its standard streams here, and
stays as the process that tests see, signal and kill: it passes signals on, ends as the forked process ends, and takes it along when it is
killed. What runs is the same program in a process of its own; only the imports are not done anew.
"""

import ctypes
import gc
import importlib
import inspect
import json
import os
import runpy
import selectors
import signal
import socket
import sys
import traceback
from contextlib import suppress
from pathlib import Path

from data.system.death import die_with_parent

MAX_REQUEST = 1 << 20
_CLONE_NEWNET = 0x40000000


def serve(path, tests):
    """Fork for each client until the process that runs the tests, of which this is the pidfd, is gone."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(f"{path}.draft")
    listener.listen(64)
    Path(f"{path}.draft").rename(path)  # now it hears
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    # A child that has ended is told of by its own pidfd: its client gets the status.
    selector.register(tests, selectors.EVENT_READ)
    clients = {}  # client's connection -> (child, its pidfd)
    while True:
        ready = [key.fileobj for key, _ in selector.select()]
        if tests in ready:
            for child, _ in clients.values():
                os.kill(child, signal.SIGKILL)
            return
        # Clients that are gone first: the next start must not meet what a killed one left running.
        for connection in [each for each in clients if each in ready]:
            hear(connection, clients, selector)
        for connection, (child, pidfd) in list(clients.items()):
            if pidfd in ready:
                _, status = os.waitpid(child, 0)
                with suppress(OSError):
                    connection.send(str(os.waitstatus_to_exitcode(status)).encode())
                forget(connection, clients, selector)
        if listener in ready:
            connection, _ = listener.accept()
            request, descriptors, _, _ = socket.recv_fds(connection, MAX_REQUEST, 3)
            child = os.fork()
            if child == 0:
                run(json.loads(request), descriptors, connection)
            for descriptor in descriptors:
                os.close(descriptor)
            clients[connection] = (child, os.pidfd_open(child))
            selector.register(connection, selectors.EVENT_READ)
            selector.register(clients[connection][1], selectors.EVENT_READ)


def hear(connection, clients, selector):
    """Pass a signal on to a client's child; end it, and wait for that, when the client is gone."""
    child, _ = clients[connection]
    try:
        message = connection.recv(16)
    except OSError:
        message = b""
    if message:
        os.kill(child, int(message))
        return
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    forget(connection, clients, selector)


def forget(connection, clients, selector):
    _, pidfd = clients.pop(connection)
    for each in (connection, pidfd):
        selector.unregister(each)
    os.close(pidfd)
    connection.close()


def run(request, descriptors, connection):
    """Become what the client was told to run; never returns."""
    try:
        for number, descriptor in enumerate(descriptors):
            os.dup2(descriptor, number)
        os.closerange(3, 1024)
        connection.detach()
        os.setsid()
        die_with_parent()
        Path("/proc/self/comm").write_text(request["module"] or Path(request["argv"][0]).name)  # its command line stays the server's
        network = Path(f"/proc/{request['pid']}/ns/net")  # a node of a test is a network namespace
        if not network.samefile("/proc/self/ns/net"):
            with network.open("rb") as namespace:
                ctypes.CDLL(None).setns(namespace.fileno(), _CLONE_NEWNET)
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["directory"])
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler)
        sys.argv = request["argv"]
        if request["module"]:
            runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
        else:
            sys.path.insert(0, str(Path(request["argv"][0]).parent))
            runpy.run_path(request["argv"][0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else (0 if end.code is None else 1)
        if end.code is not None and not isinstance(end.code, int):
            print(end.code, file=sys.stderr)
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        traceback.print_exc()
        code = 1
    with suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def fill_caches():
    """Compute once what each stage would compute at its start and keep: with imports, a third of a stage of a few steps on two ranks."""
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    from stages.blocks import Closed

    get_checkpoint_conversion_mapping("llama")  # compiles a thousand patterns, for whatever family
    classes = Closed.__subclasses__()
    for each in classes:  # theirs too, which are added as it goes
        classes += each.__subclasses__()
        each.model_rebuild()
    # torchrun's rendezvous tells each of its steps with all frames: for one in a file that is no module's, all modules are looked through.
    inspect.modulesbyfile.update({"<frozen runpy>": "runpy", __file__: "__main__"})
    inspect.getmodule(sys._getframe(), "no module")


if __name__ == "__main__":
    tests = os.pidfd_open(int(sys.argv[2]))
    os.environ["DS_ACCELERATOR"] = "cpu"  # which DeepSpeed reads when it is imported; a stage sets it as well
    stages = (
        "datasets",
        "deepspeed",
        "deepspeed.module_inject.auto_ep_config",
        "deepspeed.runtime.zero.muon.muon_optimizer",
        "peft",
        "torch.distributed.elastic.rendezvous.c10d_rendezvous_backend",
        "torch.distributed.run",
        "transformers.models.llama.modeling_llama",
        "trl",
        "trl.models.utils",
        "stages.evaluate.stage",
        "stages.ppo.stage",
        "stages.responses.chooser",
        "stages.trl.gathering",
        "stages.trl.sft",
        "stages.trl.rm",
    )
    commands = ("pipeline.run", "pipeline.report.progress", "pipeline.report.tables") if "RLHF_TEST_SOAK" in os.environ else ()
    for module in (*stages, *commands):
        importlib.import_module(module)
    fill_caches()
    gc.collect()
    gc.freeze()  # a collection in a child would copy every page of what was imported: half a second each
    serve(sys.argv[1], tests)
