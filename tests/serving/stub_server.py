"""A child for the supervisor that is up in no time: `python -m tests.serving.stub_server FD FD BEHAVIOUR`.

It answers 200 on the socket that it is given and says so over the socket pair, as the server's process does.
"""

import os
import select
import signal
import socket
import sys
import threading
import time

from qwen_vqa.serving.server_process import ToSupervisor

SLOW_SECONDS = 8


def answer(sock: socket.socket) -> None:
    """Every connection gets this process' id."""
    while True:
        select.select([sock], [], [])
        try:
            connection, _ = sock.accept()
        except BlockingIOError:
            continue  # the stand-in was faster
        with connection:
            connection.setblocking(True)
            connection.recv(65536)
            body = str(os.getpid()).encode()
            head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            connection.sendall(head.encode() + body)


def main(listening: str, channel: str, behaviour: str) -> None:
    """Fails at the start, gives up and is long in ending, stays loading, takes its time, drains at once when told to,
    or does not listen to it.
    """
    if behaviour == "fail":
        sys.exit(7)
    supervisor = ToSupervisor(socket.socket(fileno=int(channel)))
    if behaviour == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if behaviour in ("slow", "loading", "gives up"):
        supervisor.loading()
    if behaviour == "gives up":
        time.sleep(2.5)
        supervisor.closed()
        time.sleep(4)  # as an interpreter that has imported much takes to end
        sys.exit(2)
    if behaviour == "slow":
        time.sleep(SLOW_SECONDS)
    if behaviour != "loading":
        sock = socket.socket(fileno=int(listening))
        supervisor.ready()
        supervisor.port_is_ours.wait()  # so that a test knows who answers from the first 200 on
        threading.Thread(target=answer, args=(sock,), daemon=True).start()
    while True:
        time.sleep(1)


if __name__ == "__main__":
    main(*sys.argv[1:4])
