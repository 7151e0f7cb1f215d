"""Device profiles: each fact has a source, and the vendor's compiler agrees with ours."""

from __future__ import annotations

from collections import Counter
from importlib import resources
from pathlib import Path

import pytest
from support import LIMITS, conv_net, gaussian, needs_compiler, save

from edgeport.devices import all_devices, find_chipset, find_device, parse_device
from edgeport.errors import InputError, StageFailed, UnknownName
from edgeport.quantize.apply import quantize_file
from edgeport.quantize.config import CONFIGS
from edgeport.runtimes import RUNTIMES
from edgeport.runtimes.lowering import compile_for
from edgeport.types import Device

FILES = sorted(f.name for f in resources.files("edgeport.devices").iterdir() if ".toml" in f.name)
NPU = "qnn_context_binary"
COMPILED = [device for device in all_devices() if NPU in device.runtimes.value]

PROFILE = """
name = "Phone"
aliases = ["p"]
chipset = "chip"
chipset_aliases = []
[runtimes]
values = ["onnx"]
source = "the maker's page"
[facts.fp16]
value = true
source = "the maker's page"
"""


@pytest.mark.parametrize("file", FILES)
def test_shipped_profiles(file: str) -> None:
    text = resources.files("edgeport.devices").joinpath(file).read_text(encoding="utf-8")
    device = parse_device(text, file)
    assert device in all_devices()
    assert device.name and device.chipset
    for fact in (device.runtimes, *device.facts.values()):
        assert len(fact.source.strip()) > 10
    assert device.runtimes.value
    # A file format is either ours or one that a later runtime brings.
    known = {*RUNTIMES, "tflite", "qnn_dlc", "precompiled_qnn_onnx"}
    assert set(device.runtimes.value) <= known


def test_the_devices_that_were_promised_are_here() -> None:
    aliases = ("s22", "s23", "s24", "s25", "8eg5", "x-elite", "rb3-gen2", "iq-9075")
    assert len({find_device(alias).name for alias in aliases}) == 8


def test_units() -> None:
    """A bandwidth in GB/s, a memory in MiB or an architecture "v75" would be off by far."""
    for device in all_devices():
        bandwidth, memory = device.fact("dram_bandwidth_bytes_per_s"), device.fact("vtcm_bytes")
        architecture, api = device.fact("htp_arch"), device.fact("android_api")
        assert bandwidth is None or 5e9 < bandwidth < 5e11
        assert memory is None or 1 << 20 <= memory <= 1 << 25
        assert architecture is None or 60 < architecture < 100
        assert api is None or 20 < api < 50
        assert device.fact("fp16") in (None, True, False)


def test_names_and_aliases_are_unique() -> None:
    names = [name.lower() for device in all_devices() for name in {device.name, *device.aliases}]
    assert [name for name, count in Counter(names).items() if count > 1] == []
    chips: dict[str, set[str]] = {}
    for device in all_devices():
        for alias in (device.chipset, *device.chipset_aliases):
            chips.setdefault(alias.lower(), set()).add(device.chipset)
    assert [alias for alias, chipsets in chips.items() if len(chipsets) > 1] == []


def test_lookup_ignores_case() -> None:
    assert find_device("S24") is find_device("samsung galaxy s24")
    assert find_chipset("SM8650") is find_device("s24")


@pytest.mark.parametrize(("find", "name"), [(find_device, "s42"), (find_chipset, "sm8651")])
def test_an_unknown_name_suggests_one(find, name: str) -> None:
    with pytest.raises(UnknownName, match="Did you mean"):
        find(name)


def test_a_profile_is_read() -> None:
    device = parse_device(PROFILE, "phone.toml")
    assert (device.name, device.fact("fp16"), device.fact("soc_model")) == ("Phone", True, None)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('name = "Phone"', "", "missing key 'name'"),
        ('chipset = "chip"', 'chipset = "chip"\nchipest = "x"', "unknown key 'chipest'"),
        ("[facts.fp16]", "[facts.fp61]", "unknown key 'fp61'"),
        (
            '[facts.fp16]\nvalue = true\nsource = "the maker\'s page"',
            "[facts]\nfp16 = true",
            "table",
        ),
        ('value = true\nsource = "the maker\'s page"', "value = true", "missing key 'source'"),
        ('values = ["onnx"]\nsource = "the maker\'s page"', 'values = ["onnx"]', "'source'"),
        ("value = true", 'value = true\nnote = "x"', "unknown key 'note'"),
        ('name = "Phone"', "name = Phone", "not valid TOML"),
        ('value = true\nsource = "the maker\'s page"', 'value = true\nsource = ""', "source"),
        ('aliases = ["p"]', 'aliases = "p"', "aliases"),
    ],
)
def test_mistakes_in_a_profile_are_errors(old: str, new: str, words: str) -> None:
    assert PROFILE.count(old) == 1
    with pytest.raises(InputError, match=r"phone\.toml") as caught:
        parse_device(PROFILE.replace(old, new), "phone.toml")
    assert words in str(caught.value)


def compiles(device: Device, precision: str, directory: Path) -> bool:
    """Returns whether the real compiler takes one small convolution net for the chip."""
    directory.mkdir()
    source = save(conv_net(), directory / "float.onnx")
    if precision != "float":
        feeds = ({"image": gaussian([1, 3, 16, 16], seed)} for seed in range(2))
        target = directory / "quantized.onnx"
        quantize_file(source, target, CONFIGS[precision], feeds)
        source = target
    try:
        compiled = compile_for(NPU, source, directory, device, precision, LIMITS)
    except StageFailed as error:
        if "in this precision" not in str(error):
            raise
        return False
    assert {node.unit for node in compiled.nodes} == {"npu"}
    return (directory / "model.bin").stat().st_size > 1000


@needs_compiler
@pytest.mark.parametrize("device", COMPILED, ids=lambda device: device.aliases[0])
def test_the_compiler_agrees_with_the_facts(device: Device, tmp_path: Path) -> None:
    assert compiles(device, "w8a8", tmp_path / "w8a8")
    assert compiles(device, "float", tmp_path / "float") == device.fact("fp16")
