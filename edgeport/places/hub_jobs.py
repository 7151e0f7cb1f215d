"""Jobs on AI Hub that outlive this process: journaled when they are submitted, resumed by id.

The journal is a file of JSON lines: a key, which says what the job was made of, and the id that AI
Hub gave it. The same key is never submitted twice, unless the job failed or its id is not known.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeport.errors import StageFailed
from edgeport.places.hub_failures import STAGE, job_failure, status_of

Key = Mapping[str, str]

_POLL_SECONDS = (0.5, 10.0)  # from, to: a phone takes minutes, a failed upload shows at once


class Journal:
    """Which ids AI Hub at `api_url` gave, in a file of JSON lines that others may share."""

    def __init__(self, path: Path, api_url: str) -> None:
        self._path, self._api_url = path, api_url

    def find(self, key: Key) -> str | None:
        """Returns the newest id of the key; a line that is not whole counts as not written."""
        found = None
        for line in self._path.read_bytes().splitlines() if self._path.is_file() else ():
            try:
                entry = json.loads(line)
            except ValueError:  # the process was killed while it wrote
                continue
            if isinstance(entry, dict) and entry.get("key") == self._full(key):
                found = entry.get("id")
        return None if found is None else str(found)

    def add(self, key: Key, identity: str, url: str = "") -> None:
        """Appends an id; it is on the disk when this returns."""
        line = json.dumps({"key": self._full(key), "id": identity, "url": url})
        with self._path.open("a+b") as file:
            torn = file.tell() > 0 and _last_byte(file) != b"\n"
            file.write((b"\n" if torn else b"") + line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def _full(self, key: Key) -> dict[str, str]:
        return {"place": "hub", "api_url": self._api_url, **key}


def _last_byte(file: Any) -> bytes:
    file.seek(-1, os.SEEK_END)
    return bytes(file.read(1))


@dataclass
class Jobs:
    """Submits, resumes and waits, until `seconds` have passed since it was made."""

    client: Any
    journal: Journal
    seconds: float
    progress: Callable[[str], None]
    _started: float = field(default_factory=time.monotonic)

    def done(self, key: Key, submit: Callable[[], Any]) -> Any:
        """Returns the client's job of this key once it has succeeded; submits it where it must.

        Raises StageFailed for a job that fails, and for one that takes more than the time left.
        """
        job = self._known(key, self.client.get_job)
        if job is None or job.get_status().failure:  # what failed once may do better now
            job = submit()
            self.journal.add(key, job.job_id, job.url)
        return self._waited(job, key["kind"])

    def uploaded(self, key: Key, get: Callable[[str], Any], upload: Callable[[], Any]) -> Any:
        """Returns the model or dataset of this key; uploads it where AI Hub has it no more."""
        self.progress(f"AI Hub: upload of the {key['kind']}")
        known = self._known(key, get)
        if known is not None and not getattr(known, "is_expired", lambda: False)():
            return known
        made = upload()
        self.journal.add(key, getattr(made, "model_id", "") or made.dataset_id)
        return made

    def _known(self, key: Key, get: Callable[[str], Any]) -> Any:
        """Returns what the journal has for the key; None where AI Hub does not know it."""
        identity = self.journal.find(key)
        if identity is None:
            return None
        try:
            return get(identity)
        except Exception as error:
            if status_of(error) in (403, 404):  # of another account, or deleted
                return None
            raise

    def _waited(self, job: Any, kind: str) -> Any:
        pause, most = _POLL_SECONDS
        while not (status := job.get_status()).finished:
            passed = time.monotonic() - self._started
            if passed + pause > self.seconds:
                raise StageFailed(
                    STAGE,
                    f"{kind} job {job.job_id} is not finished after {self.seconds:g} s (--timeout):"
                    f" it goes on at {job.url}, and the same command takes it up again",
                )
            self.progress(f"AI Hub: {kind} job {job.job_id}, {status.code.lower()}, {passed:.0f} s")
            time.sleep(pause)
            pause = min(pause * 1.5, most)
        if status.failure:
            raise job_failure(kind, job.job_id, job.url, status.message or "")
        return job
