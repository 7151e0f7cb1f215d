"""Redirects a file descriptor: what native code and child processes print goes elsewhere."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def redirected(descriptor: int, to: int) -> Iterator[None]:
    """Makes `descriptor` (1: stdout, 2: stderr) another name of the open descriptor `to`."""
    saved = os.dup(descriptor)
    os.dup2(to, descriptor)
    try:
        yield
    finally:
        os.dup2(saved, descriptor)
        os.close(saved)
