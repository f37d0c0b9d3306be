"""The address of an OpenAI server, as a user gives it with `--url`."""

from urllib.parse import urlsplit

from qwen_vqa.plugin.errors import UserError

EXAMPLE = "http://localhost:8000/v1"


def server_url(given: str, flag: str = "--url") -> str:
    """The API's address without a slash at its end; one without a path is given the /v1 that every such server has.

    Raises:
        UserError: it has no scheme, no host, or a port that cannot be.
    """
    try:
        parts = urlsplit(given.strip())
        parts.port  # noqa: B018 - read only now
    except ValueError as error:
        raise UserError(f"{flag} {given}: {str(error)[:1].lower()}{str(error)[1:]}. An address: {EXAMPLE}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        hint = f"http://{given}" if "://" not in given and given else EXAMPLE
        raise UserError(f"{flag} {given}: an address begins with http:// or https://, for example {hint}")
    if parts.query or parts.fragment:
        raise UserError(f"{flag} {given}: an API's address has nothing behind its path, for example {EXAMPLE}")
    path = parts.path.rstrip("/") or "/v1"
    return f"{parts.scheme}://{parts.netloc}{path}"
