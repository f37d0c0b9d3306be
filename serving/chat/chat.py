"""`qwen-vqa chat`: a page in the browser to talk to a server, its own or any that speaks the OpenAI API.

qwen-vqa chat --url http://localhost:8000/v1
"""

import argparse
import ipaddress
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

from qwen_vqa.plugin.errors import UserError
from qwen_vqa.serving.chat.server import KEY_VARIABLE, URL_VARIABLE

PAGE = Path(__file__).with_name("chat_page.py")
DEFAULT_URL = "http://localhost:8000/v1"
KEY_FROM = "VLLM_API_KEY"
# Streamlit's settings as environment variables, so that a config.toml in the folder at hand cannot change them.
STREAMLIT_SETTINGS = {
    "BROWSER_GATHER_USAGE_STATS": "false",
    "SERVER_SHOW_EMAIL_PROMPT": "false",
    "SERVER_FILE_WATCHER_TYPE": "none",
    "SERVER_MAX_UPLOAD_SIZE": "20",
    "CLIENT_TOOLBAR_MODE": "minimal",
    "CLIENT_SHOW_ERROR_DETAILS": "none",
    # Two themes, for a single one is shown whatever the visitor's system prefers.
    "THEME_LIGHT_PRIMARY_COLOR": "#6d4aff",
    "THEME_DARK_PRIMARY_COLOR": "#9580ff",
    "THEME_BASE_RADIUS": "0.75rem",
    "LOGGER_LEVEL": "warning",
    # Otherwise a click while an answer is written looks to the page as if it had been closed.
    "RUNNER_FAST_RERUNS": "false",
}


def build_parser(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The flags of `qwen-vqa chat`."""
    add = parser.add_argument
    add("--url", default=DEFAULT_URL, help="the server's address, with /v1 (default: %(default)s)")
    add("--api-key", help=f"a key of that server; the page never shows it (default: {KEY_FROM}, or none)")
    add("--host", default="localhost", help="address the page listens on (default: %(default)s, this machine alone)")
    add("--port", type=int, default=8501, help="port of the page (default: %(default)s)")
    return parser


def run(args: argparse.Namespace) -> NoReturn:
    """Check, then become the page's process; Ctrl-C ends it.

    Raises:
        UserError: not an address, or Streamlit is not installed.
    """
    _check_url(args.url)
    if find_spec("streamlit") is None:
        raise UserError("the chat page needs Streamlit: `make setup`, or pip install -e '.[chat]' in the checkout.")
    if not _is_loopback(args.host):
        print(
            f"qwen-vqa: anybody who reaches {args.host}:{args.port} may ask the server through this page, with its key",
            file=sys.stderr,
            flush=True,
        )
    # A fresh process: the key stands in its environment and no longer on its command line.
    os.execve(sys.executable, _command(args), _environment(args))


def _command(args: argparse.Namespace) -> list[str]:
    flags = [f"--server.address={args.host}", f"--server.port={args.port}"]
    return [sys.executable, "-m", "streamlit", "run", str(PAGE), *flags]


def _environment(args: argparse.Namespace) -> dict[str, str]:
    key = args.api_key or os.environ.get(KEY_FROM, "")
    settings = {f"STREAMLIT_{name}": value for name, value in STREAMLIT_SETTINGS.items()}
    return {**os.environ, **settings, URL_VARIABLE: args.url.rstrip("/"), KEY_VARIABLE: key}


def _check_url(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"--url {url}: an address such as {DEFAULT_URL} is needed.")


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
