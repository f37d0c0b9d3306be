"""Every route of the real app has a rule, and nothing gets round it."""

import asyncio
from types import SimpleNamespace

import pytest
from fastapi import FastAPI
from starlette.routing import BaseRoute, Mount

from qwen_vqa.plugin.errors import UserError
from qwen_vqa.serving.admission.api_keys import KeyRing
from qwen_vqa.serving.admission.authentication import AccessMiddleware
from qwen_vqa.serving.admission.route_rules import GROUPS, RULES, Access, RouteRules
from qwen_vqa.serving.errors.refusals import RefusedError
from qwen_vqa.serving.startup.serve_help import HELP
from tests.serving.asgi import client_of
from tests.tiny import tiny_config, tiny_processor

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
    from qwen_vqa.serving.process.lifecycle import Lifecycle
    from qwen_vqa.serving.serve import _complete_admission, _parse

    args = _parse(["--api-key", KEY, *flags])
    args.enable_scale_out = args.verify
    _complete_admission(args)
    model_config = SimpleNamespace(hf_config=tiny_config(tiny_processor()), get_pooling_task=lambda tasks: None)
    return build_server_app(args, ("generate",), model_config, None, Lifecycle(lambda: False, 0), lambda: True)


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
        return real_app(*EVERYTHING, "--open-routes", ",".join(GROUPS))


def test_every_route_of_the_app_has_a_rule(full_app: FastAPI, plain_app: FastAPI):
    ruled = {(method, rule.path) for rule in RULES for method in rule.methods.split("|")}
    found = routes_of(full_app) | routes_of(plain_app)
    assert found - ruled == set(), "a newer vLLM has more routes: give each its rule, or leave it closed with a group"
    assert ruled - found == _routes_of_newer_releases(), "rules for routes that are no more"


def _routes_of_newer_releases() -> set[tuple[str, str]]:
    from qwen_vqa.serving.vllm_server_api import SINCE_0_33

    return set() if SINCE_0_33 else {("POST", "/v1/decisions")}


def test_a_route_that_nobody_listed_is_closed(plain_app: FastAPI):
    @plain_app.get("/v1/new")
    async def new() -> str:
        return "done"

    assert _status(plain_app, "GET", "/v1/new", KEY) == 404


def test_only_health_ready_and_the_start_page_answer_without_a_key(plain_app: FastAPI):
    """Every route of the app, asked with no key."""
    open_to_all = [
        (method, path)
        for method, path in sorted(routes_of(plain_app))
        if _status(plain_app, method, path.replace("{", "").replace("}", "")) != 401
    ]
    assert open_to_all == [("GET", "/"), ("GET", "/health"), ("GET", "/ready")]


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
        "/v1/models/x/y/z",
        "/v1/models/x/",
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
        assert refused.value.allow


def test_a_path_that_is_also_anothers_name_keeps_both_rules():
    assert RouteRules().find("GET", "/v1/responses/render").path == "/v1/responses/{response_id}"
    assert RouteRules(GROUPS).find("POST", "/v1/responses/render").group == "scale-out"


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


def test_the_guard_stands_around_everything_and_vllms_own_key_check_not_inside(plain_app: FastAPI):
    layers = []
    layer = plain_app.middleware_stack
    while layer is not None:
        layers.append(type(layer).__name__)
        layer = getattr(layer, "app", None)
    ours = ["RequestLogMiddleware", "ApiErrorsMiddleware", "LifecycleMiddleware", "AccessMiddleware", "UsageMiddleware"]
    assert layers[:7] == [*ours, "RequestImagesMiddleware", "ServerErrorMiddleware"]
    assert "AuthenticationMiddleware" not in layers


def test_without_origins_a_browsers_preflight_is_refused(plain_app: FastAPI):
    async def ask():
        headers = {"origin": "https://example.org", "access-control-request-method": "POST"}
        async with client_of(plain_app) as client:
            return await client.options("/v1/chat/completions", headers=headers)

    reply = asyncio.run(ask())
    assert reply.status_code == 401
    assert not [name for name in reply.headers if name.startswith("access-control")]
