"""The address of a server, as users give it."""

import pytest

from qwen_vqa.plugin.command.server_address import server_url
from qwen_vqa.plugin.errors import UserError


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("http://localhost:8000/v1", "http://localhost:8000/v1"),
        ("http://localhost:8000/v1/", "http://localhost:8000/v1"),
        ("http://localhost:8000", "http://localhost:8000/v1"),
        ("https://example.org/", "https://example.org/v1"),
        ("http://[::1]:8000/v1", "http://[::1]:8000/v1"),
        ("https://example.org/openai/v1", "https://example.org/openai/v1"),
    ],
)
def test_an_address_without_a_path_is_given_v1(given: str, taken: str):
    assert server_url(given) == taken


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ("localhost:8000/v1", "http://localhost:8000/v1"),
        ("example.org", "http://example.org"),
        ("ftp://example.org/v1", "http://"),
        ("http://", "http://localhost:8000/v1"),
        ("", "http://localhost:8000/v1"),
        ("http://localhost:99999/v1", "99999"),
        ("http://localhost:eight/v1", "eight"),
        ("http://[::1/v1", "::1"),
        ("http://localhost:8000/v1?key=1", "key=1"),
    ],
)
def test_what_is_no_address_is_said_with_one_that_is(given: str, named: str):
    with pytest.raises(UserError, match="--url") as refused:
        server_url(given)
    assert named in str(refused.value)
    assert "\n" not in str(refused.value)
