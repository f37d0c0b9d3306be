"""The server's process, as the supervisor starts it.

`python -m qwen_vqa.serving.server_process FD FD ARGUMENTS...`

The first descriptor is the listening socket, the second this end of the socket pair to the supervisor.
"""

import gc
import os
import socket
import sys

from qwen_vqa.plugin.command.library_warnings import quiet_libraries
from qwen_vqa.plugin.errors import UserError
from qwen_vqa.serving.observability.log import say
from qwen_vqa.serving.process.process_tree import end_with_parent
from qwen_vqa.serving.process.supervisor_link import ToSupervisor

quiet_libraries()  # here, because the engine's process imports this module, too
if __name__ == "__mp_main__":  # that one
    end_with_parent()


def main(argv: list[str]) -> int:
    """Serve; returns only when the user has to change something first."""
    end_with_parent()
    sockets = []
    for descriptor in map(int, argv[:2]):
        os.set_inheritable(descriptor, False)
        sockets.append(socket.socket(fileno=descriptor))
        os.register_at_fork(after_in_child=sockets[-1].close)  # the engine may be a copy of this process
    gc.disable()  # an import looks through what is imported again and again; `serve` does it once, and turns it on
    from qwen_vqa.serving.serve import serve

    supervisor = ToSupervisor(sockets[1])
    try:
        serve(argv[2:], sockets[0], supervisor)
    except UserError as error:
        say(str(error))
    finally:  # what is wrong has been said; the interpreter's own end takes seconds, which nobody needs to be told
        supervisor.closed()
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
