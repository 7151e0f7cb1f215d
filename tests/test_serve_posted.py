"""What a page posts: whose number it is, what is taken, and which Measurements come of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serve_material import (
    ADRENO,
    DESKTOP,
    FILES,
    PHONE,
    SWIFTSHADER,
    Client,
    client_of,
    make_export,
    results,
)

from edgeport.errors import InputError
from edgeport.fingerprint import file_sha256
from edgeport.report import measurement_text
from edgeport.serving.certificate import lan_addresses
from edgeport.serving.posted import (
    MAX_BYTES,
    is_software,
    measurements_of,
    parse_posted,
    provenance_of_post,
)
from edgeport.types import Measurement

IPHONE = "Mozilla/5.0 (iPhone; CPU iPhone OS 18_0 like Mac OS X) AppleWebKit/605.1.15 Safari/604.1"
EMULATOR = "Mozilla/5.0 (Linux; Android 14; sdk_gphone64_x86_64) AppleWebKit/537.36 Chrome/150.0"


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    with client_of(make_export(tmp_path / "out")) as found:
        yield found


# Whose number it is


@pytest.mark.parametrize(
    ("from_here", "user_agent", "software", "expected"),
    [
        (True, DESKTOP, False, "host"),  # a browser on this machine, with a real GPU
        (True, "", False, "host"),
        (True, PHONE, False, "device"),  # adb reverse: a phone comes from the loopback address
        (True, IPHONE, False, "device"),
        (True, PHONE, True, "host"),
        (True, EMULATOR, False, "host"),  # the emulator runs on this machine
        (False, PHONE, False, "device"),
        (False, DESKTOP, False, "device"),  # another machine on the network
        (False, DESKTOP, True, "host"),
        (False, EMULATOR, False, "host"),
    ],
)
def test_a_phone_is_a_device_and_this_machine_is_not(
    from_here: bool, user_agent: str, software: bool, expected: str
) -> None:
    found = provenance_of_post(from_here=from_here, user_agent=user_agent, software=software)
    assert found == expected


@pytest.mark.parametrize(
    ("adapter", "software"),
    [
        (SWIFTSHADER, True),
        ({"description": "ANGLE (Google, Vulkan 1.3.0 (SwiftShader Device (Subzero)))"}, True),
        ({"description": "llvmpipe (LLVM 15.0.6, 256 bits)"}, True),
        ({"description": "Mesa lavapipe"}, True),
        ({"device": "Microsoft Basic Render Driver"}, True),
        ({"description": "ANGLE (Microsoft, WARP Direct3D11)"}, True),
        ({"vendor": "Apple", "description": "Apple Software Renderer"}, True),
        (ADRENO, False),
        ({"vendor": "arm", "architecture": "valhall"}, False),
        (
            {"vendor": "nvidia", "description": "NVIDIA GeForce RTX 4090, 32 threads a warp unit"},
            True,
        ),
        ({"vendor": "", "description": ""}, False),
    ],
)
def test_software_adapters_are_known_by_name(adapter: dict[str, str], software: bool) -> None:
    assert is_software(adapter, False) == software
    assert is_software(adapter, True)


def test_a_fallback_adapter_without_a_name_is_software(client: Client) -> None:
    adapter = {"vendor": "", "architecture": "", "device": "", "description": ""}
    assert client.post(results(adapter=adapter, fallback=True)) == (200, "kept as host\n")


# What comes of it


def test_samples_become_measurements(client: Client, tmp_path: Path) -> None:
    sent = results(warnings=["the page was in the background for a while"])
    assert client.post(sent) == (200, "kept as device, self-reported\n")
    sort_free, in_order, speedup = [Measurement.from_dict(one) for one in client.kept]
    assert (sort_free.metric, sort_free.unit) == ("frame_ms:sort_free", "ms")
    assert sort_free.value == np.median(sent["samples_ms"]["sort_free"])
    assert sort_free.samples == tuple(sent["samples_ms"]["sort_free"])
    assert sort_free.environment["splats"] == "1000"
    assert in_order.environment["splats"] == "1200"
    assert (speedup.metric, speedup.unit) == ("speedup:sort_free", "ratio")
    assert speedup.value == pytest.approx(1.5)
    assert speedup.interval is not None
    assert speedup.interval[0] <= 1.5 <= speedup.interval[1]
    for one in (sort_free, in_order, speedup):
        assert one.origin == "device, self-reported"
        assert one.artifact_sha256 == file_sha256(tmp_path / "out" / "program.json")
        assert one.environment["user_agent"] == PHONE
        assert one.environment["adapter_architecture"] == "adreno-7xx"
        assert one.environment["renderer"] == "webgpu"
        assert one.environment["frame"] == "512x512"
        assert one.warnings == ("the page was in the background for a while",)
    assert client.service.results.path == tmp_path / "out.results.jsonl"


def test_the_interval_follows_from_the_samples() -> None:
    rng = np.random.default_rng(3)
    samples = {
        "sort_free": list(rng.normal(10, 1, 40)),
        "sorted": list(rng.normal(12, 1, 40)),
    }
    posted = parse_posted(json.dumps(results(samples_ms=samples)).encode())
    made = measurements_of(posted, program_sha256="", user_agent=PHONE, from_here=False)
    low, high = made[2].interval or (0.0, 0.0)
    assert low < made[2].value < high
    assert 0.02 < high - low < 0.4


def test_one_program_alone_has_no_speedup(client: Client) -> None:
    alone = {"sort_free": [8.0, 8.1, 8.2, 8.3, 8.4]}
    sent = results(renderer="webgl2", samples_ms=alone, splats={"sort_free": 3})
    assert client.post(sent)[0] == 200
    (one,) = client.kept
    assert one["metric"] == "frame_ms:sort_free"
    assert "few samples: 5" in one["warnings"][0]


def test_a_desktop_browser_here_is_host(client: Client) -> None:
    assert client.post(results(), DESKTOP) == (200, "kept as host\n")
    assert {one["provenance"] for one in client.kept} == {"host"}
    assert not any(one["self_reported"] for one in client.kept)


def test_this_machines_own_address_is_host_too(tmp_path: Path) -> None:
    try:
        addresses = lan_addresses()
    except InputError:
        pytest.skip("this machine is on no network")
    with client_of(make_export(tmp_path / "out"), addresses=addresses) as client:
        assert client.host.startswith(addresses[0])
        assert client.post(results(), DESKTOP) == (200, "kept as host\n")


def test_posts_add_up_and_the_next_session_adds_more(tmp_path: Path) -> None:
    directory = make_export(tmp_path / "out")
    for expected in (3, 6):
        with client_of(directory) as client:
            client.post(results())
            assert len(client.kept) == expected
    assert {path.name for path in directory.iterdir()} == {
        *(name.split("/")[0] for name in FILES),
        "manifest.json",
    }


def test_what_the_terminal_shows_holds_no_control_characters(client: Client) -> None:
    sent = results(warnings=["\x1b[2J\x07 gone \u202e\nsecond line"])
    assert client.post(sent, "evil\x1b[31m agent")[0] == 200
    text = "".join(client.told)
    assert "evil [31m agent" in text
    assert all(one.isprintable() for one in text)


def test_the_mark_is_shown_and_old_files_are_read() -> None:
    one = Measurement("frame_ms:sorted", 3.0, "ms", "device", self_reported=True)
    assert "(device, self-reported)" in measurement_text(one)
    old = {key: value for key, value in one.to_dict().items() if key != "self_reported"}
    assert Measurement.from_dict(old).origin == "device"
    assert Measurement.from_dict(one.to_dict()) == one


# What is refused

LONG = "x" * 301


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": "other"}, "format"),
        ({"renderer": "metal"}, "renderer"),
        ({"renderer": ["webgpu"]}, "renderer"),
        ({"extra": 1}, "unknown key 'extra'"),
        ({"adapter": {"serial": "1"}}, "unknown key 'serial'"),
        ({"adapter": {"vendor": LONG}}, "adapter.vendor"),
        ({"adapter": {"vendor": 3}}, "adapter.vendor"),
        ({"adapter": []}, "adapter: not a JSON object"),
        ({"fallback": "no"}, "fallback"),
        ({"frame": [512]}, "frame"),
        ({"frame": [0, 512]}, "frame"),
        ({"frame": [512.5, 512]}, "frame"),
        ({"frame": [True, 512]}, "frame"),
        ({"frame": [1 << 20, 512]}, "frame"),
        ({"splats": {"sort_free": 10}}, "splats: sorted is missing"),
        ({"splats": {"sort_free": 10, "sorted": -1}}, "splats.sorted"),
        ({"frames_per_sample": 0}, "frames_per_sample"),
        ({"warnings": ["x"] * 9}, "warnings"),
        ({"warnings": [LONG]}, "warnings"),
        ({"samples_ms": {}}, "no program"),
        ({"samples_ms": {"other": [1.0] * 5}}, "unknown key 'other'"),
        ({"samples_ms": {"sort_free": [1.0] * 4}}, "a list of 5 to 2000"),
        ({"samples_ms": {"sort_free": [1.0] * 2001}}, "a list of 5 to 2000"),
        ({"samples_ms": {"sort_free": [1.0] * 5, "sorted": [1.0] * 6}}, "same number of rounds"),
        ({"samples_ms": {"sort_free": [1.0] * 4 + [0.0]}}, "not in 0"),
        ({"samples_ms": {"sort_free": [1.0] * 4 + [-1.0]}}, "not in 0"),
        ({"samples_ms": {"sort_free": [1.0] * 4 + [1e7]}}, "not in 0"),
        ({"samples_ms": {"sort_free": [1.0] * 4 + [10**400]}}, "not in 0|no JSON"),
        ({"samples_ms": {"sort_free": [1.0] * 4 + [True]}}, "no number"),
        ({"samples_ms": {"sort_free": [1.0] * 4 + ["1"]}}, "no number"),
        ({"samples_ms": {"sort_free": [1.0] * 4 + [None]}}, "no number"),
    ],
)
def test_other_forms_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        parse_posted(json.dumps(results(**changes)).encode())


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e400"])
def test_what_is_no_finite_number_is_refused(value: str) -> None:
    text = json.dumps(results(samples_ms={"sort_free": [1.0] * 4 + [123.0]}))
    with pytest.raises(InputError):
        parse_posted(text.replace("123.0", value).encode())


@pytest.mark.parametrize("key", sorted(results()))
def test_every_key_is_needed(key: str) -> None:
    sent = results()
    del sent[key]
    with pytest.raises(InputError, match=f"{key} is missing"):
        parse_posted(json.dumps(sent).encode())


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b"3", b"\xff\xfe", b'"text"', b"[" * 20_000]
)
def test_bad_json_is_told_in_one_line(client: Client, body: bytes) -> None:
    status, told = client.post(body)
    assert status == 400
    assert told.count("\n") == 1
    assert "Traceback" not in told
    assert client.kept == []


def test_the_body_has_a_limit(client: Client) -> None:
    filled = json.dumps(results()).encode()
    status, told = client.post(filled + b" " * (MAX_BYTES - len(filled)))
    assert status == 200
    status, told = client.post(b" " * (MAX_BYTES + 1))
    assert (status, told) == (413, f"results take at most {MAX_BYTES} bytes\n")
    headers = {"Content-Length": "9" * 30}
    assert client.ask("/results", "POST", headers=headers)[0].status == 413


def test_the_length_is_needed(client: Client) -> None:
    headers = {"Transfer-Encoding": "chunked"}
    answer, _ = client.ask("/results", "POST", headers=headers, body=None)
    assert answer.status == 411
    assert client.ask("/results", "POST", headers={"Content-Length": "-1"})[0].status == 411


def test_posts_a_minute_are_limited(client: Client) -> None:
    statuses = [client.post(results())[0] for _ in range(12)]
    assert statuses == [200] * 10 + [429] * 2
    assert len(client.kept) == 30


def test_a_full_disk_is_told(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    client.service.results.path = Path("/dev/full")
    status, told = client.post(results())
    assert status == 507
    assert "No space left" in told


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from([*results(), "sort_free", "x"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(results())), JSON, min_size=1, max_size=2))
def test_no_form_gets_past_the_checks(changes: dict[str, Any]) -> None:
    """What is taken can be measured; everything else is an InputError and nothing else."""
    try:
        posted = parse_posted(json.dumps(results(**changes)).encode())
    except InputError:
        return
    for one in measurements_of(posted, program_sha256="", user_agent="", from_here=False):
        json.dumps(one.to_dict(), allow_nan=False)
