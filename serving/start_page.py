"""GET /: a page for whoever opens the server's address in a browser. It says nothing that takes a key to learn."""

import re
from collections.abc import Callable
from html import escape
from pathlib import Path
from string import Template

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse

PATH = "/"
HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
}
_PAGE = Template(Path(__file__).with_name("start_page.html").read_text(encoding="utf-8"))
# What a client says it has called; anything else would not be an address to copy.
_HOST = re.compile(r"[A-Za-z0-9._-]+(:\d{1,5})?|\[[0-9A-Fa-f:.]+\](:\d{1,5})?")


def attach_start_page(app: FastAPI, names: Callable[[], list[str]], has_keys: bool, has_docs: bool) -> None:
    """Add the route.

    Args:
        names: of the models and adapters; asked for only where a server without keys tells everybody anyway.
        has_docs: whether /docs is open.
    """

    @app.get(PATH, include_in_schema=False)
    async def start_page(request: Request) -> HTMLResponse:
        """What runs here, and how to talk to it."""
        host = request.headers.get("host", "")
        root = request.scope.get("root_path", "")
        url = f"{request.url.scheme}://{host if _HOST.fullmatch(host) else 'localhost'}{root}/v1"
        models = [] if has_keys else names()
        listed = ", ".join(f"<code>{escape(name)}</code>" for name in models)
        page = _PAGE.substitute(
            url=escape(url),
            models=f"It answers to: {listed}"
            if models
            else "It asks for an API key; <code>/v1/models</code> lists its models with one.",
            model=escape(models[0] if models else "MODEL"),
            key="YOUR_KEY" if has_keys else "none",
            key_flag=" --api-key YOUR_KEY" if has_keys else "",
            docs=_docs(has_docs, has_keys),
        )
        return HTMLResponse(page, headers=HEADERS)


def _docs(has_docs: bool, has_keys: bool) -> str:
    if not has_docs:
        return "/docs, every route with its fields: off; <code>qwen-vqa serve --open-routes docs</code> opens it"
    if has_keys:
        return "/docs, every route with its fields: asks for the key, too"
    return '<a href="docs">/docs</a>, every route with its fields'
