"""How a run is asked to stop."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator

from megatron.signals import Request, Requests, handled_signals, signal_at_parents_end


class StopRequest:
    """Set by SIGTERM, SIGUSR1, SIGINT or SIGHUP: the loop finishes the step, saves and returns.

    A second signal ends the process at once, with 128 plus its number, even in the middle of a long step.

    ends_process: whether the process has nothing to do after the run. A signal then changes nothing once it has ended:
    the exit code stays that of the run.
    """

    def __init__(self, ends_process: bool = False) -> None:
        self.requested = False
        self.ends_process = ends_process

    @contextlib.contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Handle the signals in the body. Outside the main thread they stay the business of the host program."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return

        def note(signum: int, frame: object) -> None:
            self.requested = True

        reader, writer = socket.socketpair()
        writer.setblocking(False)
        numbers = handled_signals()
        previous_fd = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        previous = {number: signal.signal(number, note) for number in numbers}
        if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun dies of SIGUSR1 and SIGKILL without a word to its workers
            signal_at_parents_end(signal.SIGTERM)
        threading.Thread(target=_exit_on_second, args=(reader, numbers), daemon=True).start()
        try:
            yield self
            if self.ends_process:
                previous = dict.fromkeys(numbers, signal.SIG_IGN)
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(previous_fd)
            writer.shutdown(socket.SHUT_RDWR)  # ends the thread, also where a loader's process has the socket too
            writer.close()


def _exit_on_second(reader: socket.socket, numbers: tuple[signal.Signals, ...]) -> None:
    """End the process at the second request. A Python handler would wait for the end of the kernel that is running."""
    requests = Requests()
    with reader:
        while received := reader.recv(1):
            if received[0] in numbers and requests.note() is Request.SECOND:
                name = signal.Signals(received[0]).name
                os.write(2, f"stopped at once by a second signal, {name}: this step is not saved\n".encode())
                os._exit(128 + received[0])
