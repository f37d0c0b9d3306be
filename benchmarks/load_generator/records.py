"""What is known of one request after it ended."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(slots=True)
class Record:
    """One request. Times are seconds since the cell's start.

    `intended` is when the request was to be sent: the arrival schedule's time in an open loop; in a closed loop, and
    for the later turns of a conversation, the moment the one before it was over. Latencies count from it, so that a
    client that falls behind does not hide what a user would have waited.
    `chunks` holds (time, tokens) of every stream event that brought tokens.
    `error` is None, or the kind of failure (see errors in `streaming_client.py`); `detail` its message.
    """

    index: int
    turn: int
    model: str
    asked_tokens: int
    images: int
    repeated_image: bool
    intended: float
    sent: float = 0.0
    first_token: float | None = None
    last_token: float | None = None
    end: float = 0.0
    output_tokens: int = 0
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    image_tokens: int | None = None
    error: str | None = None
    detail: str = ""
    chunks: list[tuple[float, int]] = field(default_factory=list)

    @property
    def ttft(self) -> float:
        """Time to first token: first event with a token, minus `intended`."""
        assert self.first_token is not None
        return self.first_token - self.intended

    @property
    def e2e(self) -> float:
        """End to end: the stream's end, minus `intended`."""
        return self.end - self.intended

    @property
    def tpot(self) -> float | None:
        """Time per output token after the first: (last token - first token) / (output tokens - 1).

        As vLLM's benchmark defines it. None with fewer than two tokens.
        """
        if self.output_tokens < 2 or self.first_token is None or self.last_token is None:
            return None
        return (self.last_token - self.first_token) / (self.output_tokens - 1)

    @property
    def inter_token_latencies(self) -> list[float]:
        """Inter-token latency: for each later event, the gap to the event before, shared by the tokens it brought.

        An event with 3 tokens after 60 ms counts as three tokens of 20 ms.
        """
        gaps: list[float] = []
        for (before, _), (time, tokens) in zip(self.chunks, self.chunks[1:], strict=False):
            gaps += [(time - before) / tokens] * tokens
        return gaps

    def as_json(self) -> dict[str, Any]:
        """Without the single events, rounded to 0.1 ms."""
        row = asdict(self)
        del row["chunks"]
        return {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}
