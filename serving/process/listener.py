"""Where the server listens: the flags that say so, and the socket, bound once before anything heavy is imported."""

import argparse
import contextlib
import os
import socket
import stat
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path

from qwen_vqa.plugin.command.command_parser import CommandParser
from qwen_vqa.plugin.errors import UserError
from qwen_vqa.serving.observability.log import FORMATS

DRAIN_SECONDS = 25  # below the 30 s after which Kubernetes kills
# Longer than the 60 s for which load balancers keep an idle connection: whoever closes first must be theirs, since a
# request that crosses our closing is lost.
KEEP_ALIVE_SECONDS = 75
BACKLOG = 2048
# More than --running and --waiting together, so that who has to wait is told so.
CONNECTIONS = 4096
SLOW_CONNECTIONS_PER_ADDRESS = 64
# uvicorn's parsers: httptools takes `Upgrade: h2c`, which Java's HttpClient and curl --http2 send, for the end of HTTP
# and loses the body (uvicorn #2722); h11 ignores it, as RFC 9110 has it, and sends no chunks to HTTP/1.0.
HTTP = "h11"
# What the socket and its TLS are made of. vLLM has the same flags; a test holds the two together.
LISTEN_FLAGS = ("host", "port", "uds", "ssl_keyfile", "ssl_certfile", "ssl_ca_certs", "ssl_cert_reqs", "ssl_ciphers")


def add_life_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of the supervisor, which vLLM does not have."""
    parser.add_argument("--drain-seconds", type=int, default=DRAIN_SECONDS, help="for what runs when told to stop")
    keep_alive = int(os.environ.get("VLLM_HTTP_TIMEOUT_KEEP_ALIVE", KEEP_ALIVE_SECONDS))
    parser.add_argument("--keep-alive-seconds", type=int, default=keep_alive, help="for an idle connection")
    parser.add_argument("--connections", type=int, default=CONNECTIONS, help="at once, of all addresses")
    parser.add_argument(
        "--slow-connections-per-address", type=int, default=SLOW_CONNECTIONS_PER_ADDRESS, help="without a whole request"
    )
    parser.add_argument("--log-format", choices=FORMATS, default="text", help="lines for people, or JSON")
    parser.add_argument("--no-restart", action="store_true", help="end when the engine dies")


def listen_flags(argv: Sequence[str]) -> Namespace:
    """The flags that the supervisor needs, read from the command line without vLLM's parser.

    Raises:
        UserError: they do not go together.
    """
    parser = CommandParser(prog="qwen-vqa serve", allow_abbrev=False, add_help=False)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--uds")
    for name in ("keyfile", "certfile", "ca-certs", "ciphers"):
        parser.add_argument(f"--ssl-{name}")
    parser.add_argument("--ssl-cert-reqs", type=int, default=0)
    add_life_flags(parser)
    flags, _ = parser.parse_known_args([_dashed(argument) for argument in argv])
    if flags.drain_seconds < 0:
        raise UserError(f"--drain-seconds is {flags.drain_seconds}; the least is 0.")
    if flags.keep_alive_seconds < 1:
        raise UserError(f"--keep-alive-seconds is {flags.keep_alive_seconds}; the least is 1.")
    if flags.connections < 1:
        raise UserError(f"--connections is {flags.connections}; the least is 1.")
    if flags.slow_connections_per_address < 0:
        raise UserError(f"--slow-connections-per-address is {flags.slow_connections_per_address}; 0 is no limit.")
    _check_tls(flags)
    return flags


def _dashed(argument: str) -> str:
    """--ssl_keyfile is --ssl-keyfile, as it is for vLLM."""
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value if name.startswith("--") else argument


def _check_tls(flags: Namespace) -> None:
    if bool(flags.ssl_keyfile) != bool(flags.ssl_certfile):
        raise UserError("--ssl-keyfile and --ssl-certfile go together; pass both, or none for plain HTTP.")
    for name in ("ssl_keyfile", "ssl_certfile", "ssl_ca_certs"):
        path = getattr(flags, name)
        if path and not Path(path).is_file():
            raise UserError(f"--{name.replace('_', '-')}: there is no file {path}.")


def check_same_listener(argv: Sequence[str], args: Namespace) -> None:
    """Raises UserError where vLLM's parser, which reads --config too, understood another address than we."""
    flags = listen_flags(argv)
    for name in LISTEN_FLAGS:
        if (getattr(flags, name) or None) != (getattr(args, name) or None):
            raise UserError(
                f"--{name.replace('_', '-')} has to stand on the command line, written out, not in a --config file: "
                "the port is answered before that file is read."
            )


def listen(flags: Namespace) -> socket.socket:
    """A socket that listens at --host and --port, or at --uds.

    Raises:
        UserError: something else listens there, or the address cannot be had.
    """
    return _listen_at_path(flags.uds) if flags.uds else _listen_at_port(flags.host, flags.port)


@contextlib.contextmanager
def listening(flags: Namespace) -> Iterator[socket.socket]:
    """`listen`, and at the end the socket's file is removed if it is still the one that was made here.

    Raises:
        UserError: as `listen`.
    """
    sock = listen(flags)
    made = _identity(flags.uds) if flags.uds else None
    with sock:
        try:
            yield sock
        finally:
            if made is not None and _identity(flags.uds) == made:
                Path(flags.uds).unlink(missing_ok=True)


def _identity(path: str) -> tuple[int, int] | None:
    """Which file lies at a path: device and inode; None for none."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _listen_at_port(host: str, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except (OSError, OverflowError) as error:
        sock.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"port {port} on {host or 'all interfaces'} cannot be used ({reason}). "
            f"Stop what listens there, or pass another: --port {port + 1 if 0 < port < 65535 else 8000}."
        ) from error
    return sock


def _listen_at_path(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with contextlib.suppress(OSError):
        if stat.S_ISSOCK(os.lstat(path).st_mode) and _nobody_listens(path):
            Path(path).unlink()  # left behind by one that was killed
    try:
        sock.bind(path)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise UserError(f"--uds {path} cannot be used ({error.strerror or error}).") from error
    return sock


def _nobody_listens(path: str) -> bool:
    """Whether a connection is refused, which no living server does; another error says nothing about it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False
