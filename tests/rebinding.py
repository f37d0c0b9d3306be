"""A name that changes its address between two questions, with a real resolver: `python -m tests.rebinding`

To be run in a network of its own (`unshare -Urmn`), where this machine has a public address, too, and asks itself for
names. Fetches a picture from rebinding.example, which is there at first and at 127.0.0.1 from the second question on.
Prints which of the two addresses had a visitor.
"""

import asyncio
import http.server
import socket
import struct
import subprocess
import tempfile
import threading
from pathlib import Path

from qwen_vqa.plugin.images.image_fetch import fetch_image_bytes
from tests.image_server import png

PUBLIC, PRIVATE = "93.184.216.34", "127.0.0.1"
A_RECORD = 1


def name_server(sock: socket.socket) -> None:
    """Answers each question for an IPv4 address: the first with the public one, the others with loopback. No TTL."""
    addresses = [PUBLIC]
    while True:
        question, client = sock.recvfrom(512)
        end = question.index(b"\0", 12) + 5
        kind = struct.unpack("!H", question[end - 4 : end - 2])[0]
        answer = b""
        if kind == A_RECORD:
            address = addresses.pop() if addresses else PRIVATE
            answer = b"\xc0\x0c" + struct.pack("!HHIH", A_RECORD, 1, 0, 4) + socket.inet_aton(address)
        header = question[:2] + b"\x81\x80" + struct.pack("!HHHH", 1, bool(answer), 0, 0)
        sock.sendto(header + question[12:end] + answer, client)


class Visitors(http.server.BaseHTTPRequestHandler):
    """Answers with a picture, and remembers at which address it was asked."""

    seen: list[str] = []  # noqa: RUF012

    def do_GET(self) -> None:
        """http.server's."""
        self.seen.append(self.connection.getsockname()[0])
        self.send_response(302 if self.path == "/again" else 200)
        if self.path == "/again":
            self.send_header("Location", "http://rebinding.example/")
        self.end_headers()
        self.wfile.write(png())

    def log_message(self, *arguments: object) -> None:
        """http.server's: nothing."""


def main() -> None:
    """Ask twice for the same name: by itself, and by way of a redirect to it."""
    for command in ("ip link set lo up", f"ip addr add {PUBLIC}/32 dev lo"):
        subprocess.run(command.split(), check=True)
    with tempfile.NamedTemporaryFile("w") as resolver:
        resolver.write(f"nameserver {PRIVATE}\n")
        resolver.flush()
        subprocess.run(["mount", "--bind", resolver.name, str(Path("/etc/resolv.conf").resolve())], check=True)
        names = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        names.bind((PRIVATE, 53))
        threading.Thread(target=name_server, args=(names,), daemon=True).start()
        server = http.server.ThreadingHTTPServer(("0.0.0.0", 80), Visitors)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            asyncio.run(fetch_image_bytes("http://rebinding.example/again", "image 1"))
        except Exception as error:
            print(f"refused: {error}")
        print("asked at", *Visitors.seen)


if __name__ == "__main__":
    main()
