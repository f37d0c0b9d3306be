"""The supervisor over a child that is up in no time: `python -m tests.serving.supervised BEHAVIOUR ARGUMENTS...`"""

import asyncio
import sys

from qwen_vqa.serving.http.connections import check_file_limit, raise_file_limit
from qwen_vqa.serving.process.listener import listen_flags, listening
from qwen_vqa.serving.process.supervisor import Supervisor


def main(behaviour: str, *arguments: str) -> int:
    """As `qwen_vqa.serving.process.supervisor.supervise`, with another child."""
    flags = listen_flags(arguments)
    raise_file_limit()
    check_file_limit(flags)
    command = [sys.executable, "-m", "tests.serving.stub_server"]
    with listening(flags) as sock:
        return asyncio.run(Supervisor(command, [behaviour], flags, sock).run())


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
