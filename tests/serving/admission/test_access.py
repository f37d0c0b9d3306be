"""Nothing gets round the door, and what it lets in and out of the running server."""

import asyncio
import socket
from urllib.parse import urlsplit

import httpx
import pytest

from qwen_vqa.serving.admission.api_keys import KeyRing
from qwen_vqa.serving.admission.authentication import AccessMiddleware
from qwen_vqa.serving.admission.route_rules import GROUPS, RouteRules
from tests.serving.asgi import echo


def test_a_websocket_without_a_rule_is_refused_before_it_is_accepted():
    sent = []

    async def send(message):
        sent.append(message["type"])

    async def receive():
        return {"type": "websocket.connect"}

    scope = {"type": "websocket", "path": "/v1/realtime", "headers": []}
    asyncio.run(AccessMiddleware(echo, RouteRules(GROUPS), KeyRing())(scope, receive, send))
    assert sent == ["websocket.close"]


@pytest.mark.parametrize(
    ("path", "method"),
    [
        ("/v1/models", "GET"),
        ("/metrics", "GET"),
        ("/version", "GET"),
        ("/load", "GET"),
        ("/tokenize", "POST"),
        ("/detokenize", "POST"),
        ("/v1/chat/completions", "POST"),
        ("/v1/completions", "POST"),
        ("/v1/responses", "POST"),
        ("/v1/messages", "POST"),
        ("/v1/responses/some", "GET"),
    ],
)
def test_the_running_server_asks_for_a_key(guarded_server, path: str, method: str):
    reply = httpx.request(method, guarded_server.address + path, json={} if method == "POST" else None)
    assert reply.status_code == 401
    assert reply.json()["error"]["code"] == "invalid_api_key"


def test_the_key_may_come_as_anthropics_sdk_sends_it(guarded_server):
    body = {"model": "tiny", "max_tokens": 2, "messages": [{"role": "user", "content": "Hi"}]}
    url = f"{guarded_server.address}/v1/messages"
    reply = httpx.post(url, json=body, headers={"x-api-key": guarded_server.keys["alice"]}, timeout=60)
    assert reply.status_code == 200
    assert httpx.post(url, json=body, headers={"x-api-key": "wrong"}).status_code == 401
    both = {"x-api-key": guarded_server.keys["alice"], "Authorization": "Bearer wrong"}
    assert httpx.post(url, json=body, headers=both).status_code == 401


@pytest.mark.parametrize(
    "path", ["/docs", "/openapi.json", "/redoc", "/invocations", "/ping", "/tokenizer_info", "/nothing"]
)
def test_the_running_server_keeps_the_rest_closed(guarded_server, path: str):
    for method in ("GET", "POST"):
        for headers, status in (({}, 401), (guarded_server.headers("alice"), 404)):
            reply = httpx.request(method, guarded_server.address + path, headers=headers, json={})
            assert reply.status_code == status
            assert reply.json()["error"]["message"]


def test_the_running_servers_health_is_open(guarded_server):
    assert httpx.get(guarded_server.address + "/health").status_code == 200


def test_vllms_own_http_metrics_still_count_behind_the_door(guarded_server):
    """They would be gone if the guard had had the middleware built a second time."""
    headers = guarded_server.headers("alice")
    assert httpx.get(guarded_server.url + "/models", headers=headers).status_code == 200
    metrics = httpx.get(guarded_server.address + "/metrics", headers=headers).text
    assert 'http_requests_total{handler="/v1/models",method="GET",status="2xx"}' in metrics


@pytest.mark.parametrize(
    "request_line",
    [
        "GET //v1/models",
        "GET /v1/models/",
        "GET /v1/%6dodels",
        "GET /v1%2fmodels",
        "GET /%2e/v1/models",
        "GET /health/../v1/models",
        "GET /health/%2e%2e/v1/models",
        "GET /v1/models?/health",
        "GET /v1/models#/health",
        "GET /v1/models;/health",
        "GET /v1/models%00",
        "GET http://localhost/v1/models",
        "GET http://localhost/health/../v1/models",
        "GET HTTP://localhost//v1/models",
        "HEAD /v1/models",
        "OPTIONS /v1/models",
        "get /v1/models",
        "GET /metrics/",
        "GET /metrics/../metrics",
        "GET /docs/../openapi.json",
        "POST /v1/chat/completions/",
    ],
)
def test_nothing_gets_round_the_running_servers_rules(guarded_server, request_line: str):
    reply = _raw(guarded_server.address, f"{request_line} HTTP/1.1\r\nHost: localhost\r\nX-Original-URL: /health\r\n")
    status = int(reply.split(" ", 2)[1])
    assert status in (400, 401), reply
    assert '"tiny"' not in reply
    assert "vllm:" not in reply


def test_a_websocket_at_the_running_server_is_refused(guarded_server):
    upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    handshake = f"Host: localhost\r\n{upgrade}Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    for path in ("/v1/realtime", "/v1/models", "/health"):
        assert " 403 " in _raw(guarded_server.address, f"GET {path} HTTP/1.1\r\n{handshake}").splitlines()[0]


def test_only_configured_origins_may_call_from_a_browser(guarded_server):
    def preflight(origin: str) -> httpx.Response:
        headers = {"origin": origin, "access-control-request-method": "POST"}
        return httpx.options(guarded_server.address + "/v1/chat/completions", headers=headers)

    assert preflight("https://example.org").headers["access-control-allow-origin"] == "https://example.org"
    assert "access-control-allow-origin" not in preflight("https://evil.example").headers
    refused = httpx.get(guarded_server.address + "/v1/models", headers={"origin": "https://example.org"})
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == "https://example.org", "so that the page can read why"


def _raw(address: str, head: str) -> str:
    host, port = urlsplit(address).hostname, urlsplit(address).port
    with socket.create_connection((host, port), timeout=10) as connection:
        if "Upgrade" not in head:
            head += "Connection: close\r\n"
        connection.sendall(f"{head}\r\n".encode())
        reply = b""
        while chunk := connection.recv(65536):
            reply += chunk
            if "Upgrade" in head and b"\r\n\r\n" in reply:
                break
    return reply.decode("latin-1")
