"""Commands on a board whose stdin we hold: while it is open, somebody waits for them.

When it ends - we close it, we are killed, the network or the cable goes - the **keeper** removes
its directory on the board, and the runner kills what it runs.
"""

from __future__ import annotations

import os
import select
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from edgeport.errors import EdgeportError, RuntimeCrashed

_CLOSE_SECONDS = 15.0
# $1 the directory above, $2 what to print before the name. The word "keep" on stdin keeps it.
KEEPER = (
    'trap "" HUP PIPE; umask 077;'
    ' d=$(mktemp -d "${1:-${TMPDIR:-/tmp}}/edgeport-XXXXXXXXXX") || exit 9;'
    ' echo "$2$d"; read -r word; [ "$word" = keep ] && exit 0;'
    ' rm -rf "$d" || { sleep 1; rm -rf "$d"; }'
)
# Runs its arguments, and kills them where stdin ends first. A shell gives what it starts in the
# background an empty stdin, so ours gets another number.
WATCHED = (
    'exec 3<&0; "$@" & tool=$!; { cat <&3; kill -9 $tool; } >/dev/null 2>&1 & watch=$!;'
    " wait $tool; status=$?; kill $watch; exit $status"
)


@dataclass(frozen=True)
class Ended:
    """How a command on the board ended; `status` is its exit status, `stdout` what it printed."""

    status: int
    stdout: str
    stderr: str

    @property
    def last_line(self) -> str:
        """The last line that it printed, errors after the rest."""
        return last_line(f"{self.stdout}\n{self.stderr}")


def run_held(command: Sequence[str], seconds: float, name: str) -> Ended:
    """Runs a command here whose stdin stays open as long as it is waited for.

    Where it outlives `seconds`, or we are interrupted, its stdin ends and it is killed: whatever it
    stands for on the board sees that. Raises RuntimeCrashed.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=out, stderr=errors, start_new_session=True
        )
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            said = f"{name} did not answer in {seconds:g} s (--timeout)"
            raise RuntimeCrashed("run", said, reason="timeout") from None
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.kill()  # nothing where it has ended
            process.wait()
        for file in (out, errors):
            file.seek(0)
        texts = [file.read().decode(errors="replace") for file in (out, errors)]
    return Ended(status, *texts)


@contextmanager
def kept_directory(
    command: Sequence[str], log: Path, marker: str, seconds: float, keep: bool, name: str
) -> Iterator[str]:
    """Yields the directory that the keeper made, "" where it made none; it goes with the block.

    `command` runs KEEPER on the board `name`; what it says on stderr is in `log`. With `keep` the
    directory stays; an error then says where, as it does where it could not be removed.
    """
    with log.open("wb") as errors:
        keeper = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,  # the terminal's Ctrl-C is for us
        )
    directory = ""
    try:
        directory = _wait_for_directory(keeper, marker.encode(), seconds)
        yield directory
    except EdgeportError as error:
        if (not _close(keeper, keep) or keep) and directory:
            error.add_note(f"{directory} {'is' if keep else 'may be'} left on {name}")
        raise
    except BaseException:
        _close(keeper, keep)
        raise
    if not _close(keeper, keep):
        warnings.warn(f"{directory} on {name} may not have been removed", stacklevel=3)


def _wait_for_directory(keeper: subprocess.Popen[bytes], marker: bytes, seconds: float) -> str:
    assert keeper.stdout is not None
    deadline, seen = time.monotonic() + seconds, b""
    while time.monotonic() < deadline:
        if select.select([keeper.stdout], [], [], 0.5)[0]:
            block = os.read(keeper.stdout.fileno(), 4096)
            seen += block
            # What the login prints may stand before it, on the same line too.
            _, found, rest = seen.partition(marker)
            if found and b"\n" in rest:
                return rest.partition(b"\n")[0].decode().rstrip("\r")
            if not block:
                break
    return ""


def _close(keeper: subprocess.Popen[bytes], keep: bool) -> bool:
    """Lets the keeper remove its directory, and waits for it; returns whether it did."""
    assert keeper.stdin is not None and keeper.stdout is not None
    with suppress(BrokenPipeError):  # it has ended: so has its stdin, which is all it waits for
        if keep:
            keeper.stdin.write(b"keep\n")
            keeper.stdin.flush()
    with suppress(BrokenPipeError):
        keeper.stdin.close()
    try:
        status = keeper.wait(_CLOSE_SECONDS)
    except subprocess.TimeoutExpired:
        keeper.kill()
        status = keeper.wait()
    keeper.stdout.close()
    return status == 0


def last_line(text: str) -> str:
    """Returns the last line that says anything."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"
