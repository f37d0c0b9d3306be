"""The server's process, as the supervisor starts it.

`python -m qwen_vqa.serving.process.server_process FD FD ARGUMENTS...`

The first descriptor is the listening socket, the second this end of the socket pair to the supervisor.
"""

import gc
import os
import signal
import socket
import sys
import threading

from qwen_vqa.plugin.errors import UserError
from qwen_vqa.plugin.library_warnings import quiet_libraries
from qwen_vqa.serving.observability.log import say
from qwen_vqa.serving.process.process_tree import end_with_parent

quiet_libraries()  # here, because the engine's process imports this module, too
if __name__ == "__mp_main__":  # that one
    end_with_parent()


class ToSupervisor:
    """This end of the socket pair. When the other end is gone, so is the supervisor.

    Then everything ends at once: nobody is left who would start it again, and the next server needs the port.
    """

    def __init__(self, channel: socket.socket):
        self._channel = channel
        self.port_is_ours = threading.Event()
        threading.Thread(target=self._listen, daemon=True).start()

    def ready(self) -> None:
        """The server answers: the port may be left to it."""
        self._channel.sendall(b"ready\n")

    def closed(self) -> None:
        """The server takes no more connections."""
        try:
            self._channel.sendall(b"closed\n")
        except OSError:
            return  # there is no supervisor any more

    def _listen(self) -> None:
        while self._channel.recv(16):
            self.port_is_ours.set()
        os.killpg(os.getpgrp(), signal.SIGKILL)


def main(argv: list[str]) -> int:
    """Serve; returns only when the user has to change something first."""
    end_with_parent()
    sockets = []
    for descriptor in map(int, argv[:2]):
        os.set_inheritable(descriptor, False)
        sockets.append(socket.socket(fileno=descriptor))
        os.register_at_fork(after_in_child=sockets[-1].close)  # the engine may be a copy of this process
    gc.disable()  # an import looks through what is imported again and again; `serve` does it once, and turns it on
    from qwen_vqa.serving.serve import serve

    try:
        serve(argv[2:], sockets[0], ToSupervisor(sockets[1]))
    except UserError as error:
        say(str(error))
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
