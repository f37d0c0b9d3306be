"""The door: every request has a route that is open, and a key where the route asks for one."""

from dataclasses import dataclass

from starlette._utils import get_route_path
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from qwen_vqa.serving.admission.api_keys import ApiKey, KeyRing
from qwen_vqa.serving.admission.route_rules import Access, RouteRules, Rule
from qwen_vqa.serving.errors.refusals import RefusedError
from qwen_vqa.serving.observability.request_record import request_record

STATE = "qwen_vqa_admitted"


@dataclass(frozen=True)
class Admitted:
    """What the door found out about a request; the key is None where none was asked for."""

    rule: Rule
    key: ApiKey | None


class AccessMiddleware:
    """Refuses what has no key (401) or no rule (404, 405), and leaves an `Admitted` in the scope's state.

    Stands around vLLM's whole app, so that nothing in it is reached before the rules were asked.
    """

    def __init__(self, app: ASGIApp, rules: RouteRules, keys: KeyRing):
        self.app = app
        self.rules = rules
        self.keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        try:
            admitted = self._admit(scope)
        except RefusedError as refusal:
            if scope["type"] == "websocket":
                # Before it was accepted: the server answers the handshake with 403.
                return await send({"type": "websocket.close", "code": 1008})
            return await refusal.send(send)
        scope.setdefault("state", {})[STATE] = admitted
        record = request_record()
        record.route, record.key = admitted.rule.path, admitted.key.name if admitted.key else None
        if scope["type"] == "http" and scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}  # FastAPI's routes have no HEAD; the server leaves the body out
        await self.app(scope, receive, send)

    def _admit(self, scope: Scope) -> Admitted:
        method = "WEBSOCKET" if scope["type"] == "websocket" else scope["method"]
        try:
            rule = self.rules.find(method, get_route_path(scope))
        except RefusedError:
            self._key(scope)  # which routes there are is for those with a key
            raise
        if rule.access is Access.OPEN:
            return Admitted(rule, None)
        key = self._key(scope)
        if rule.access is Access.ADMIN and not (key and key.admin):
            raise RefusedError(
                403 if key else 401,
                "This route needs an admin's key: one with \"admin\": true in the server's --api-keys-file.",
                code="admin_key_required",
            )
        return Admitted(rule, key)

    def _key(self, scope: Scope) -> ApiKey | None:
        """The request's key; None where the server has none. Raises RefusedError for a missing or unknown one."""
        if not self.keys:
            return None
        headers = Headers(scope=scope)
        scheme, _, sent = headers.get("authorization", "").partition(" ")
        if "authorization" not in headers:  # Anthropic's SDK sends a key so
            scheme, sent = "bearer", headers.get("x-api-key", "")
        key = self.keys.find(sent.strip()) if scheme.lower() == "bearer" else None
        if key is None:
            raise RefusedError(
                401,
                "Incorrect or missing API key. Send one that this server knows as 'Authorization: Bearer KEY'.",
                code="invalid_api_key",
            )
        return key
