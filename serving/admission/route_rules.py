"""Every route of the server with its rule. What is not on the list is closed: a newer vLLM opens nothing by itself.

A path matches as a whole and as the router will see it: `//v1/models`, `/v1/models/` and `/metrics/x` match nothing.
"""

import re
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum

from qwen_vqa.plugin.errors import UserError
from qwen_vqa.serving.errors.refusals import RefusedError


class Access(Enum):
    """Who may call a route."""

    OPEN = "open"  # everybody
    KEY = "key"  # any key; everybody where the server has no keys
    ADMIN = "admin"  # an admin's key, also where the server has no keys


@dataclass(frozen=True)
class Rule:
    """A route's rule.

    A route of a `group` is off until `--open-routes` names the group. `limited` routes do work: they count against
    the caller's limits and wait in the queue.
    """

    methods: str
    path: str
    access: Access = Access.KEY
    group: str | None = None
    limited: bool = False


def _group(group: str, access: Access, *routes: str, limited: bool = False) -> list[Rule]:
    split = (route.split(" ") for route in routes)
    return [Rule(methods, path, access, group, limited) for methods, path in split]


RULES = [
    Rule("GET", "/", Access.OPEN),
    Rule("GET", "/health", Access.OPEN),
    Rule("GET", "/ready", Access.OPEN),
    Rule("GET", "/metrics"),
    Rule("GET", "/version"),
    Rule("GET", "/load"),
    Rule("GET", "/v1/models"),
    Rule("GET", "/v1/models/{model}"),
    Rule("GET", "/v1/models/{organisation}/{model}"),
    Rule("POST", "/v1/chat/completions", limited=True),
    Rule("POST", "/v1/chat/completions/tokens", limited=True),
    Rule("POST", "/v1/completions", limited=True),
    Rule("POST", "/v1/responses", limited=True),
    Rule("GET", "/v1/responses/{response_id}"),
    Rule("POST", "/v1/responses/{response_id}/cancel"),
    Rule("POST", "/v1/messages", limited=True),
    Rule("POST", "/v1/messages/count_tokens", limited=True),
    Rule("POST", "/tokenize", limited=True),
    Rule("POST", "/detokenize", limited=True),
    *_group("docs", Access.KEY, "GET /docs", "GET /docs/oauth2-redirect", "GET /redoc", "GET /openapi.json"),
    *_group("tokenizer-info", Access.KEY, "GET /tokenizer_info"),
    *_group("sagemaker", Access.OPEN, "GET|POST /ping"),
    *_group("sagemaker", Access.KEY, "POST /invocations", limited=True),
    *_group("adapters", Access.ADMIN, "POST /v1/load_lora_adapter", "POST /v1/unload_lora_adapter"),
    *_group("batch", Access.KEY, "POST /v1/chat/completions/batch", limited=True),
    *_group("scoring", Access.KEY, "POST /generative_scoring", "POST /v1/systemone", limited=True),
    *_group("scoring", Access.KEY, "POST /v1/decisions", limited=True),  # since vLLM 0.33
    *_group(
        "verify",
        Access.KEY,
        "POST /v1/chat/completions/render",
        "POST /verify/image_features",
        "GET /verify/settings",
        limited=True,
    ),
    *_group(
        "scale-out",
        Access.ADMIN,
        "POST /v1/completions/render",
        "POST /v1/messages/render",
        "POST /v1/responses/render",
        "POST /v1/chat/completions/derender",
        "POST /v1/completions/derender",
        "POST /inference/v1/generate",
        "POST /inference/v1/abort_requests",
        "GET /kv_event_sources",
    ),
    *_group(
        "scaling",
        Access.ADMIN,
        "POST /scale_elastic_ep",
        "POST /is_scaling_elastic_ep",
        "POST /fault_tolerance/apply",
        "GET /fault_tolerance/status",
    ),
    *_group("profiling", Access.ADMIN, "POST /start_profile", "POST /stop_profile"),
    *_group(
        "development",
        Access.ADMIN,
        "POST /reset_prefix_cache",
        "POST /reset_mm_cache",
        "POST /reset_encoder_cache",
        "POST /collective_rpc",
        "GET /server_info",
        "POST /sleep",
        "POST /release_kv_cache_memory",
        "POST /wake_up",
        "GET /is_sleeping",
        "POST /pause",
        "POST /resume",
        "POST /abort_requests",
        "GET /is_paused",
        "POST /init_weight_transfer_engine",
        "POST /shutdown_weight_transfer_engine",
        "POST /start_weight_update",
        "POST /start_draft_weight_update",
        "POST /update_weights",
        "POST /finish_weight_update",
        "POST /update_weight_version",
        "GET /weight_info",
        "POST /weight_checker",
        "GET /get_world_size",
    ),
]
GROUPS = sorted({rule.group for rule in RULES if rule.group})


class RouteRules:
    """The list above with some groups open.

    Raises:
        UserError: there is no such group.
    """

    def __init__(self, open_groups: Collection[str] = ()):
        unknown = sorted(set(open_groups) - set(GROUPS))
        if unknown:
            raise UserError(f"--open-routes: no group {', '.join(unknown)}. There are: {', '.join(GROUPS)}.")
        self._open_groups = set(open_groups)
        named = [rule for rule in RULES if "{" in rule.path]
        self._patterns = [(rule, re.compile(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(rule.path)))) for rule in named]
        self._plain: defaultdict[str, list[Rule]] = defaultdict(list)
        for rule in RULES:
            if rule not in named:
                self._plain[rule.path].append(rule)

    def find(self, method: str, path: str) -> Rule:
        """The rule of a request.

        Raises:
            RefusedError: 404, the route is off or not on the list; 405, it is there for other methods.
        """
        # HEAD is answered where GET is; whoever may not GET may not learn the size either.
        method = "GET" if method == "HEAD" else method
        here = [rule for rule, pattern in self._patterns if pattern.fullmatch(path)] + self._plain.get(path, [])
        fits = [rule for rule in here if method in rule.methods.split("|")]
        for rule in fits:
            if self._is_on(rule):
                return rule
        on = [rule for rule in here if self._is_on(rule)]
        if on and not fits:
            allowed = [method for rule in on for method in rule.methods.split("|")]
            raise RefusedError(405, f"{method} is not allowed here; use {' or '.join(allowed)}.", allow=allowed)
        if here:
            group = (fits or here)[0].group
            raise RefusedError(404, f"this route is off. Whoever runs the server can open it: --open-routes {group}")
        raise RefusedError(404, "there is no such route.")

    def is_open(self, group: str) -> bool:
        """Whether --open-routes names it."""
        return group in self._open_groups

    def _is_on(self, rule: Rule) -> bool:
        return rule.group is None or self.is_open(rule.group)
