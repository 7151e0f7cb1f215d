"""What AI Hub and its client say when something fails, translated to cause and fix."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from edgeport.errors import EdgeportError, InputError, StageFailed

STAGE = "hub"
RESUMES = "the same command takes the jobs up again that AI Hub has"

# What the reason of a failed job matches -> what to do. The first that matches is told.
_JOB_FIXES: tuple[tuple[str, str], ...] = (
    (
        r"context binary version|version mismatch|err(or)?( code)?:? *(5000|1002)\b"
        r"|(qnn|qairt|sdk)[^.]{0,40}\b(newer|older|version)",
        "the phone's QAIRT is older than the one in the file (DEPLOY.md names it), or the file is"
        " for another chip: export for this very device, or run --target-runtime onnx, which AI Hub"
        " compiles itself",
    ),
    (
        r"(dsp|hexagon|soc|htp) ?(arch|model|version)|another (soc|chip)",
        "the file was compiled for another chip: export for this very device",
    ),
    (
        r"(fp16|float ?16|float ?32|floating.point)[^.]{0,60}(not supported|unsupported)"
        r"|(not support|unsupported|only)[^.]{0,60}(fp16|float|int8)",
        "this chip does not compute that type: export with --precision w8a8 or w8a16",
    ),
    (
        r"validate op|op_type|unsupported op|(op|operator|layer|node)\b[^.]{0,60}"
        r"(not supported|unsupported)|no opset",
        "`edgeport doctor` names the operators that the NPU refuses, each with a fix",
    ),
    (
        r"input|tensor|schema|dataset",
        "the inputs do not fit the file that was uploaded: export again, and run that",
    ),
    (r"out of memory|\boom\b|bad_alloc", "the model is too large for this phone: quantize it"),
    (r"time(d)? ?out|too long", "run it again, or take a device that is free"),
)

_STATUS: dict[int, tuple[type[InputError] | type[StageFailed], str]] = {
    400: (StageFailed, "AI Hub refuses the request: {text}"),
    401: (
        InputError,
        "AI Hub does not take the token in {file}: `qai-hub configure --api_token TOKEN` writes the"
        " one that {web}/account/ shows",
    ),
    403: (
        InputError,
        "AI Hub does not allow this (403: {text}): the account lacks the right, or its quota is"
        " used up; see {web}/account/",
    ),
    404: (InputError, "AI Hub does not have what was asked for: {text}"),
    413: (StageFailed, "the model is too large for AI Hub ({text}): quantize it"),
    426: (InputError, "AI Hub takes this client no more: pip install --upgrade qai-hub"),
    429: (StageFailed, "AI Hub takes no more jobs at the moment ({text}): later, {resumes}"),
}


def translated(error: Exception, api_url: str, web_url: str, file: Path) -> EdgeportError:
    """Returns what the client raised as our own error: cause and fix in one sentence."""
    web, text = web_url.rstrip("/"), first_sentence(str(error))
    status = status_of(error)
    if status in _STATUS:
        kind, sentence = _STATUS[status]
        words = sentence.format(file=file, web=web, text=text, resumes=RESUMES)
        return InputError(words) if kind is InputError else StageFailed(STAGE, words)
    if status is not None and status < 400:  # a page of a proxy, or of another service
        return InputError(f"what answers at {api_url} is not AI Hub: check api_url in {file}")
    if status is not None and status >= 500:
        words = f"AI Hub fails itself ({status} at {api_url}): later, {RESUMES}"
        return StageFailed(STAGE, words)
    if any(isinstance(one, OSError) for one in chain(error)):  # all of requests' are OSErrors
        words = f"the connection to {api_url} broke ({_network_reason(error)}): {RESUMES}"
        return StageFailed(STAGE, words)
    if "not support" in text and "device" in text:
        return InputError(f"AI Hub: {text}; choose another --target-runtime or --device")
    return StageFailed(STAGE, f"qai-hub: {type(error).__name__}: {text}")


def job_failure(kind: str, job_id: str, url: str, reason: str) -> StageFailed:
    """Returns the error for a job that failed on AI Hub, with the fix where it is known."""
    said = first_sentence(reason) or "no reason was given"
    fix = next((fix for pattern, fix in _JOB_FIXES if re.search(pattern, reason, re.I)), "")
    hint = f"; {fix}" if fix else ""
    return StageFailed(STAGE, f"{kind} job {job_id} failed: {said}{hint}; its log: {url}")


def status_of(error: BaseException) -> int | None:
    """Returns the HTTP status that the error comes from, if it comes from one."""
    for one in chain(error):
        status = getattr(one, "status_code", None)
        if isinstance(status, int):
            return status
        # After the last retry of a GET requests raises this, without a response.
        if found := re.search(r"too many (\d{3}) error responses", str(one)):
            return int(found[1])
    return None


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yields the error and what led to it; the client hides the HTTP error behind its own."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def first_sentence(text: str) -> str:
    """Returns the text in one line, without the frame that the client draws, at most 300 long."""
    bare = re.sub(r"[\u2500-\u257f]+", " ", text)
    bare = re.sub(r"(?m)^\s*\|(.*)\|\s*$", r"\1", bare)
    line = " ".join(bare.split())
    return line if len(line) <= 300 else f"{line[:297]}..."


def _network_reason(error: Exception) -> str:
    """Returns the innermost system error in words, such as "connection refused"."""
    reasons = [one.strerror for one in chain(error) if isinstance(one, OSError) and one.strerror]
    innermost = list(chain(error))[-1]
    return (reasons[-1] if reasons else type(innermost).__name__).lower()
