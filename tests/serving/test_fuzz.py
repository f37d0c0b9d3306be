"""A short run of the fuzzer; `python -m tests.fuzz_server` is the long one."""

from tests.fuzz_server import Outcome, fuzz
from tests.server import Server


def test_malformed_requests_are_refused_and_the_server_lives(tiny_server: Server):
    outcome = Outcome()
    fuzz(tiny_server, 250, 7, "tiny", outcome)
    assert outcome.failures == []
    assert outcome.requests == 250
    kinds = {kind for kind, status in outcome.statuses if 400 <= status < 500}
    assert kinds == {"picture", "body", "bytes"}
    assert tiny_server.client.models.list().data
