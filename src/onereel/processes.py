"""Starting processes from within somebody's program."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


@contextmanager
def hidden_main() -> Iterator[None]:
    """Start processes without importing the program's main module in them.

    By default they would import it: a script that calls onereel without `if __name__ == "__main__":` would run again in
    each of them, and one read from standard input could not start any.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
