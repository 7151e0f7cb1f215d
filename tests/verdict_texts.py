"""Verdicts for tests: one of each outcome, and any that hypothesis can think of."""

from __future__ import annotations

from hypothesis import strategies as st

from edgeport.types import Measurement, Verdict

SQNR = Measurement("sqnr_db:qnn_context_binary", 40.31234, "dB", "emulated")
HELD = Verdict(
    "padre",
    "claim",
    "sqnr_db:qnn_context_binary",
    "pass",
    ">= 30 (emulated)",
    "sqnr_db:qnn_context_binary 40.31 dB (emulated)",
    "w8a16: the compiled net gives torch's logits",
    SQNR,
)
FAILED = Verdict(
    "models/net.onnx",
    "claim",
    "size_bytes:onnx",
    "fail",
    "<= 1e+06 (host)",
    "size_bytes:onnx 1,234,567 B (host)",
    "the app's budget is 1 MB",
    Measurement("size_bytes:onnx", 1234567.0, "B", "host"),
)
MISSING = Verdict(
    "padre",
    "claim",
    "speedup_over_attention",
    "missing",
    ">= 11 (device)",
    "nothing measured it here",
    "the paper: 11x to 43x faster than self-attention",
)
INCONCLUSIVE = Verdict(
    "padre",
    "regression",
    "speedup:onnx",
    "inconclusive",
    "baseline 1.06, no lower beyond the noise floor",
    "speedup:onnx 1.031 [0.99, 1.06]: -2.7% against the baseline, within the noise",
    "",
    Measurement("speedup:onnx", 1.0312, "ratio", "host", interval=(0.99, 1.06)),
)
EACH = (HELD, MISSING, INCONCLUSIVE, FAILED)

# What breaks formats: ends of CDATA and of comments, control characters, line ends of every kind,
# emoji, marks that turn the direction, half a surrogate pair, percent escapes, markup.
_NASTY = st.sampled_from(
    [
        *("]]>", "<![CDATA[", "-->", "&amp;", "&", "<b>", '"', "'", "%0A", "%", "::error::", "::"),
        *("\n", "\r", "\r\n", "\t", "\x00", "\x1b[31m", "\x85", "\u2028", "\ufffe", "\ud800"),
        *("\U0001f600", "\u202e", "|", "\\", "`", "``", "**", "_", "[a](b)", "~~", "$x$", "<!--"),
        *("@team", "#1", "!5", ",", ":", "=", "[red]", "https://a.b/c?d=e&f"),
    ]
)
TEXTS = st.lists(_NASTY | st.text(max_size=6), max_size=5).map("".join)
NUMBERS = st.floats(allow_nan=True, allow_infinity=True)
MEASUREMENTS = st.builds(
    Measurement,
    metric=TEXTS,
    value=NUMBERS,
    unit=st.sampled_from(["dB", "B", "ms", "ratio", "1", "", "ops"]),
    provenance=st.sampled_from(["device", "emulated", "host", "modelled"]),
    interval=st.none() | st.tuples(NUMBERS, NUMBERS),
)
VERDICTS = st.builds(
    Verdict,
    subject=TEXTS,
    kind=st.sampled_from(["claim", "regression"]),
    metric=TEXTS,
    outcome=st.sampled_from(["pass", "fail", "missing", "inconclusive"]),
    limit=TEXTS,
    reason=TEXTS,
    why=TEXTS,
    measurement=st.none() | MEASUREMENTS,
)
LISTS = st.lists(VERDICTS, max_size=5)
