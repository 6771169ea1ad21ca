"""End a process when its parent ends, for whatever reason."""

from __future__ import annotations

import os
import signal
import sys
import threading


def end_with_parent() -> None:
    """Kill this process and its own children as soon as standard input, a pipe from the parent, is closed.

    The system closes it even when the parent is killed. A training that went on alone would still be writing when the
    comparison is started again.
    """

    def wait() -> None:
        while os.read(sys.stdin.fileno(), 1024):
            pass
        if hasattr(os, "killpg") and os.getpgrp() == os.getpid():  # the parent gave us a group of our own
            os.killpg(0, signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
