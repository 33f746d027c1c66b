"""How the processes of a stage notice that one of them is gone."""

import datetime
import os
import sys
import threading
import time
from typing import Any

from torch import distributed

from stages.process.context import StageContext
from stages.spec import EXIT_FAILED

_BEAT_S = 2.0
_SILENCE_S = 30.0  # after which a rank counts as gone
_START_S = 300.0  # within which every rank's first beat must come


class Heartbeat:
    """A thread in each process that ends it when another one has not been heard of.

    A collective waits for a rank that hangs, is stopped, or lies beyond a network that is cut, until a timeout that must be long. Every
    rank listens to rank 0, and rank 0 to every rank, over torchrun's store and connections of their own.
    """

    def __init__(self, context: StageContext, silence_s: float = _SILENCE_S) -> None:
        self.context = context
        self.listens_to = [0] if context.rank else list(range(1, context.world_size))
        self.silence_s = silence_s
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        timeout = datetime.timedelta(seconds=silence_s / 2)
        store: Any = distributed.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
            host, port, context.world_size, is_master=False, wait_for_workers=False, timeout=timeout
        )
        self._store: Any = distributed.PrefixStore(  # pyright: ignore[reportPrivateImportUsage]
            f"heartbeat-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store
        )

    def start(self) -> None:
        """Begin to beat and to listen."""
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def _beat(self) -> None:
        heard: dict[int, tuple[bytes, float]] = {rank: (b"", time.monotonic() + _START_S) for rank in self.listens_to}
        last_answer_s = time.monotonic()
        count = 0
        while True:
            count += 1
            try:
                self._store.set(str(self.context.rank), str(count))
                for rank in self.listens_to:
                    beat = self._store.get(str(rank)) if self._store.check([str(rank)]) else b""
                    if beat != heard[rank][0]:
                        heard[rank] = (beat, time.monotonic())
                last_answer_s = time.monotonic()
            except Exception as error:  # the store is gone, or the network
                if time.monotonic() - last_answer_s > self.silence_s:
                    self._end(f"the node of rank 0 has not answered for {self.silence_s:.0f} s ({type(error).__name__})")
            for rank, (_, heard_s) in heard.items():
                if time.monotonic() - heard_s > self.silence_s:
                    self._end(f"rank {rank} has not been heard of for {self.silence_s:.0f} s: it hangs, or its node or network is gone")
            time.sleep(_BEAT_S)

    def _end(self, message: str) -> None:
        message += "; run the same command to go on from the last checkpoint, if there is one"
        print(f"error: {message}", file=sys.stderr, flush=True)
        self.context.event("error", message=message, exit_code=EXIT_FAILED)
        os._exit(EXIT_FAILED)
