"""What the server's process and the supervisor tell each other, from the server's side."""

import os
import signal
import socket
import threading


class ToSupervisor:
    """This end of the socket pair. When the other end is gone, so is the supervisor.

    Then everything ends at once: nobody is left who would start it again, and the next server needs the port.
    """

    def __init__(self, channel: socket.socket):
        self._channel = channel
        self.port_is_ours = threading.Event()
        threading.Thread(target=self._listen, daemon=True).start()

    def loading(self) -> None:
        """Flags and checkpoint are checked, and the model is loaded next."""
        self._channel.sendall(b"loading\n")

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
