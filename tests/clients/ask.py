"""Asks a running server through client libraries that nobody here wrote. Runs in a library's environment.

python -m tests.clients.ask URL MODEL IMAGE QUESTION ANSWER LIBRARY    a line of JSON: each check, "yes" or the fault
"""

import json
import sys
from collections.abc import Callable, Iterable

from tests.clients import frameworks, sdks
from tests.clients.asked import Asked, Checks

LIBRARIES: dict[str, Callable[[Asked], Checks]] = {
    "openai": sdks.with_openai,
    "litellm": sdks.with_litellm,
    "langchain-openai": frameworks.with_langchain,
    "llama-index-llms-openai-like": frameworks.with_llama_index,
    "openai-agents": frameworks.with_openai_agents,
    "instructor": sdks.with_instructor,
    "pydantic-ai-slim": frameworks.with_pydantic_ai,
    "dspy": frameworks.with_dspy,
    "haystack-ai": frameworks.with_haystack,
    "llm": frameworks.with_llm,
    "anthropic": sdks.with_anthropic,
}


def found(checks: Checks) -> Iterable[tuple[str, str]]:
    """Each check with "yes", or what went wrong in one line."""
    for name, check in checks.items():
        try:
            check()
        except Exception as fault:  # the fault is the finding
            yield name, f"{type(fault).__name__}: {fault}".splitlines()[0][:160]
        else:
            yield name, "yes"


if __name__ == "__main__":
    *place, library = sys.argv[1:]
    print(json.dumps(dict(found(LIBRARIES[library](Asked(*place))))))
