"""Asking a server that stands for a measurement: all prompts, with progress, and the replies in the prompts' order."""

from collections.abc import Sequence

from tqdm import tqdm

from qwen_vqa.train.evaluation.questions import Prompt
from qwen_vqa.train.evaluation.replies import Reply
from qwen_vqa.train.evaluation.server_model import ServerModel

MAX_TOKENS = 64
CONCURRENCY = 16
REQUEST_SECONDS = 1800.0


def ask_server(
    url: str, name: str | None, asked: Sequence[Prompt], label: str, max_tokens: int = MAX_TOKENS
) -> list[Reply]:
    """Greedy answers of a server's model, or why there is none, in the order of `asked`.

    Args:
        url: the API's address, ending in /v1.
        name: the model's on the server; None for the first.
        label: what the progress bar says.

    Raises:
        UserError: there is no such model, or one request after another fails.
    """
    model = ServerModel.find(url, name, "none", max_tokens=max_tokens, concurrency=CONCURRENCY, timeout=REQUEST_SECONDS)
    replies: dict[int, Reply] = {}
    with tqdm(total=len(asked), desc=f"asking {label}", unit="question") as progress:

        def record(reply: Reply) -> None:
            replies[id(reply.prompt)] = reply
            progress.update()

        model.ask(asked, record)
    return [replies[id(prompt)] for prompt in asked]
