"""Every route of the real app has a rule, and nothing gets round it."""

import asyncio
import socket
from types import SimpleNamespace
from urllib.parse import urlsplit

import httpx
import pytest
from fastapi import FastAPI
from starlette.routing import BaseRoute, Mount

from qwen_vqa.plugin.errors import UserError
from qwen_vqa.serving.access import AccessMiddleware
from qwen_vqa.serving.api_keys import KeyRing
from qwen_vqa.serving.refusals import RefusedError
from qwen_vqa.serving.route_rules import GROUPS, RULES, Access, RouteRules
from qwen_vqa.serving.serve import HELP
from tests.serving.asgi import client_of, echo

KEY = "some-secret-0123456789"
EVERYTHING = [
    "--verify",
    "--enable-tokenizer-info-endpoint",
    "--enable-fault-tolerance",
    "--profiler-config",
    '{"profiler": "torch", "torch_profiler_dir": "/tmp"}',
]


def real_app(*flags: str) -> FastAPI:
    """The app as `serve` builds it, guard included, without an engine."""
    from qwen_vqa.serving.app import build_server_app
    from qwen_vqa.serving.serve import _complete_guard, _parse

    args = _parse(["--api-key", KEY, *flags])
    args.enable_scale_out = args.verify
    _complete_guard(args)
    hf_config = SimpleNamespace(num_image_tokens=5)
    model_config = SimpleNamespace(hf_config=hf_config, get_pooling_task=lambda tasks: None)
    return build_server_app(args, ("generate",), model_config, None)


def routes_of(app: FastAPI) -> set[tuple[str, str]]:
    def walk(routes: list[BaseRoute]) -> set[tuple[str, str]]:
        found = set()
        for route in routes:
            # Of a mounted app nothing is known but its place: the rules leave it that one path.
            methods = {"GET"} if isinstance(route, Mount) else getattr(route, "methods", None) or {"WEBSOCKET"}
            found |= {(method, route.path) for method in methods - {"HEAD"}}
        return found

    return walk(app.routes)


@pytest.fixture(scope="module")
def plain_app() -> FastAPI:
    return real_app()


@pytest.fixture(scope="module")
def full_app() -> FastAPI:
    """With everything that vLLM has a switch for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_SERVER_DEV_MODE", "1")
        patch.setenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "1")
        return real_app(*EVERYTHING, "--open-routes", ",".join(GROUPS))


def test_every_route_of_the_app_has_a_rule(full_app: FastAPI, plain_app: FastAPI):
    ruled = {(method, rule.path) for rule in RULES for method in rule.methods.split("|")}
    found = routes_of(full_app) | routes_of(plain_app)
    assert found - ruled == set(), "a newer vLLM has more routes: give each its rule, or leave it closed with a group"
    assert ruled - found == set(), "rules for routes that are no more"


def test_a_route_that_nobody_listed_is_closed(plain_app: FastAPI):
    @plain_app.get("/v1/new")
    async def new() -> str:
        return "done"

    assert _status(plain_app, "GET", "/v1/new", KEY) == 404


def test_only_health_answers_without_a_key(plain_app: FastAPI):
    """Every route of the app, asked with no key."""
    open_to_all = [
        (method, path)
        for method, path in sorted(routes_of(plain_app))
        if _status(plain_app, method, path.replace("{", "").replace("}", "")) != 401
    ]
    assert open_to_all == [("GET", "/health")]


@pytest.mark.parametrize(
    ("method", "path"),
    [(method, rule.path) for rule in RULES if rule.group for method in rule.methods.split("|")],
)
def test_what_nobody_needs_is_off_also_with_a_key(plain_app: FastAPI, method: str, path: str):
    assert _status(plain_app, method, path.replace("{", "").replace("}", ""), KEY) == 404


def test_opened_it_still_asks_for_a_key_and_an_admins_where_it_changes_the_server(full_app: FastAPI):
    for rule in RULES:
        path = rule.path.replace("{", "").replace("}", "")
        for method in rule.methods.split("|"):
            if rule.access is not Access.OPEN:
                assert _status(full_app, method, path) == 401, path
            if rule.access is Access.ADMIN:
                assert _status(full_app, method, path, KEY) == 403, path


def _status(app: FastAPI, method: str, path: str, key: str | None = None) -> int:
    async def ask() -> int:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        async with client_of(app) as client:
            try:
                return (await client.request(method, path, headers=headers)).status_code
            except AttributeError:  # it got as far as the engine, which is not there
                return 200

    return asyncio.run(ask())


def test_verify_opens_what_verify_needs_and_no_more(plain_app: FastAPI):
    rules = RouteRules(["verify"])
    assert rules.find("POST", "/v1/chat/completions/render").limited
    assert rules.find("POST", "/verify/image_features").access is Access.KEY
    with pytest.raises(RefusedError, match="--open-routes scale-out"):
        rules.find("POST", "/inference/v1/generate")


def test_a_group_that_is_not_there_is_said():
    with pytest.raises(UserError, match=r"no group debug. There are: adapters, batch"):
        RouteRules(["docs", "debug"])
    assert all(group in HELP for group in GROUPS)


@pytest.mark.parametrize(
    "path",
    [
        "//v1/models",
        "/v1//models",
        "/v1/models/",
        "/v1/models/x",
        "/v1/./models",
        "/health/../v1/models",
        "/health/v1/models",
        "/V1/models",
        "/v1/models\n",
        "/metrics/",
        "/metrics/x",
        "/metrics//",
        "v1/models",
        "http://host/v1/models",
        "",
    ],
)
def test_a_path_that_is_not_exactly_a_listed_one_is_closed(path: str):
    with pytest.raises(RefusedError) as refused:
        RouteRules(GROUPS).find("GET", path)
    assert refused.value.status == 404


def test_head_is_get_and_other_methods_are_told_what_is_right():
    rules = RouteRules()
    assert rules.find("HEAD", "/v1/models").access is Access.KEY
    for method in ("POST", "OPTIONS", "CONNECT", "get", "WEBSOCKET"):
        with pytest.raises(RefusedError, match="use GET") as refused:
            rules.find(method, "/v1/models")
        assert refused.value.status == 405


def test_a_path_below_root_path_has_its_rule():
    inner = FastAPI(root_path="/proxy")
    inner.add_middleware(AccessMiddleware, rules=RouteRules(), keys=KeyRing([KEY]))
    inner.add_api_route("/health", lambda: "well")
    inner.add_api_route("/v1/models", lambda: "models")
    assert _status(inner, "GET", "/proxy/health") == 200
    for path, status in {
        "/proxy/v1/models": 200,
        "/v1/models": 200,  # as Starlette routes it
        "/proxy//v1/models": 404,
        "/proxy/proxy/v1/models": 404,
        "/proxyv1/models": 404,
    }.items():
        assert _status(inner, "GET", path) == 401, path
        assert _status(inner, "GET", path, KEY) == status, path


def test_a_websocket_without_a_rule_is_refused_before_it_is_accepted():
    sent = []

    async def send(message):
        sent.append(message["type"])

    async def receive():
        return {"type": "websocket.connect"}

    scope = {"type": "websocket", "path": "/v1/realtime", "headers": []}
    asyncio.run(AccessMiddleware(echo, RouteRules(GROUPS), KeyRing())(scope, receive, send))
    assert sent == ["websocket.close"]


def test_the_guard_stands_around_everything_and_vllms_own_key_check_not_inside(plain_app: FastAPI):
    layers = []
    layer = plain_app.middleware_stack
    while layer is not None:
        layers.append(type(layer).__name__)
        layer = getattr(layer, "app", None)
    assert layers[:3] == ["AccessMiddleware", "UsageMiddleware", "ServerErrorMiddleware"]
    assert "AuthenticationMiddleware" not in layers


def test_without_origins_a_browsers_preflight_is_refused(plain_app: FastAPI):
    async def ask():
        headers = {"origin": "https://example.org", "access-control-request-method": "POST"}
        async with client_of(plain_app) as client:
            return await client.options("/v1/chat/completions", headers=headers)

    reply = asyncio.run(ask())
    assert reply.status_code == 401
    assert not [name for name in reply.headers if name.startswith("access-control")]


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
