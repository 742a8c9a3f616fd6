"""Imported by the fork server, and by it alone: a SIGTERM to the process group must not end it under its workers.

Processes forked from it, a user's own included, answer SIGTERM as ever.
"""

import os
import signal


def _answer_again() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.register_at_fork(after_in_child=_answer_again)
