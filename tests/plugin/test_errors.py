"""What libraries say, inside our sentences."""

import httpx
import pytest
from openai import APIConnectionError

from qwen_vqa.plugin.errors import UserError, reason_of
from qwen_vqa.train.verify.served_stages import ServedModel, served_models


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("It broke."), "It broke"),
        (ValueError("two\n  lines..."), "two lines"),
        (KeyError("messages"), "'messages'"),
        (APIConnectionError(request=httpx.Request("GET", "http://x")), "Connection error"),
        (ValueError(), "ValueError"),
    ],
)
def test_a_reason_is_one_line_without_its_full_stop(error: Exception, reason: str):
    assert reason_of(error) == reason


def test_no_server_is_one_sentence_after_another():
    nowhere = "http://127.0.0.1:9/v1"
    for ask in (lambda: served_models(nowhere, "none"), lambda: ServedModel(nowhere, "x", "none").settings()):
        with pytest.raises(UserError) as said:
            ask()
        assert ".." not in str(said.value)
