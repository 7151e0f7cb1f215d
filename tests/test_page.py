"""What a page of `edgeport report` says of an export, as HTML and as markdown."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
import pytest
from page_material import HOSTILE, benchmark, compared, edit, make_plain, make_rich
from support import needs_matplotlib

from edgeport.catalog import all_recipes
from edgeport.errors import InputError
from edgeport.page.data import PageData, gather, gather_page
from edgeport.page.html import html_page
from edgeport.page.markdown import markdown_page
from edgeport.page.placement import Placement, fit_of, overall
from edgeport.page.series import read_bench, series_of
from edgeport.types import Measurement, NodeReport, Provenance, Verdict
from edgeport.verdicts import to_json

pytestmark = needs_matplotlib


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_plain(tmp_path_factory.mktemp("page"))


@pytest.fixture
def directory(plain: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(plain, tmp_path / "out"))


@pytest.fixture
def rich(directory: Path) -> Path:
    return make_rich(directory)


def both(data: PageData) -> list[str]:
    """Returns the page's visible text as HTML and as markdown, unescaped as far as tests need."""
    html = re.sub(r"<style>.*?</style>", "", html_page(data), flags=re.DOTALL)
    words = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", html))
    return [words.replace("&#39;", "'").replace("&gt;", ">"), markdown_page(data).replace("\\", "")]


# What it says


def test_the_page_says_what_the_manifest_holds(rich: Path) -> None:
    for text in both(gather_page([rich])):
        assert "padre (padre3) on Samsung Galaxy S24" in text
        assert "Does not fit Samsung Galaxy S24" in text
        assert "1 of 3 ops fall to the CPU: 1 Shrink" in text
        assert "no such operator" in text and "write it with basic operators" in text
        assert "17.5 dB" in text and "emulated" in text
        assert "20 dB asked for" in text
        assert "91.0 MB" in text
        assert "the phone was warm" in text
        assert "model.onnx" in text and "the captured graph" in text
        assert "states no memory: it is not known here" in text


def test_a_loss_is_shown_as_plainly_as_a_win(rich: Path) -> None:
    for text in both(gather_page([rich])):
        assert "padre3 is slower than attention: 0.80 times its speed, 95 % interval 0.78" in text
        assert "padre3 is faster than attention: 2.00 times its speed, 95 % interval 1.94" in text


def test_an_interval_around_one_is_inconclusive(rich: Path) -> None:
    manifest = edit(rich)
    edit(rich, run={**manifest["run"], "latency": [compared("the net", 1.01)]})
    for text in both(gather_page([rich])):
        assert "padre3 beside attention is inconclusive: 1.01 times its speed" in text
        assert "is faster than" not in text and "is slower than" not in text


def test_emulated_and_modelled_times_are_never_shown(rich: Path) -> None:
    for provenance in ("emulated", "modelled"):
        one = Measurement("latency_ms", 4321.0, "ms", provenance)
        assert series_of("arm", one) is None
    for text in both(gather_page([rich])):
        assert "4321" not in text
    found = gather(rich).comparisons[-1]
    assert [(one.name, one.provenance) for one in found.series] == [("onnx on hub", "device")]


def test_what_was_not_timed_or_placed_is_said_in_words(directory: Path) -> None:
    for text in both(gather_page([directory])):
        assert "Nothing was timed: an emulator's times mean nothing and are not shown." in text
        assert "No runtime of this export reports where its operators land." in text
        assert "declares no claims here" in text
        assert "Whether it fits Samsung Galaxy S24 is not known" in text


def test_the_same_export_gives_the_same_page(rich: Path) -> None:
    assert html_page(gather_page([rich])) == html_page(gather_page([rich]))


def test_several_exports_have_a_table_of_all(rich: Path, plain: Path) -> None:
    for text in both(gather_page([rich, plain])):
        assert "padre (padre3) on Samsung Galaxy S24" in text
        assert "net.onnx on Samsung Galaxy S24" in text
        assert "worst parity" in text and "npu 2, cpu 1" in text


# Placement


def placement(*units: str, runtime: str = "tflite") -> Placement:
    nodes = tuple(NodeReport(f"n{i}", "Conv", unit) for i, unit in enumerate(units))  # type: ignore[arg-type]
    known = {"tflite": ("gpu", "cpu"), "qnn_dlc": ("npu", "cpu"), "executorch": ("cpu",)}
    return Placement((runtime,), known[runtime], nodes)  # type: ignore[arg-type]


def test_fits_is_judged_by_what_is_left_to_the_cpu() -> None:
    on_gpu, on_npu = placement("gpu", "gpu"), placement("npu", runtime="qnn_dlc")
    left, cpu = placement("gpu", "cpu"), placement("cpu", "cpu", runtime="executorch")
    assert [fit_of(one).fits for one in (on_gpu, left, cpu)] == ["fits", "does not fit", "CPU only"]
    assert overall([fit_of(on_gpu), fit_of(on_npu), fit_of(cpu)]) == "fits"
    assert overall([fit_of(on_npu), fit_of(left)]) == "fits in part"
    assert overall([fit_of(left), fit_of(cpu)]) == "does not fit"
    assert overall([fit_of(cpu)]) == "CPU only"
    assert overall([]) == "not known"


@pytest.mark.parametrize(("ram", "fits"), [(8_000_000_000, "fits"), (100, "does not fit")])
def test_memory_counts_where_the_device_states_it(directory: Path, ram: int, fits: str) -> None:
    device = edit(directory)["device"]
    facts = {**device["facts"], "ram_bytes": {"value": ram, "source": "its box"}}
    edit(directory, device={**device, "facts": facts})
    page = gather(directory)
    assert page.reasons[-1].fits == fits
    assert page.fits == ("does not fit" if fits == "does not fit" else "not known")
    for text in both(PageData((page,))):
        # Relu reads 8 x 16 x 16 floats and gives as many.
        assert "computed from the graph: 16.4 kB" in text
        assert "states no memory" not in text


def test_a_graph_without_static_shapes_has_no_known_peak(directory: Path) -> None:
    model = onnx.load(directory / "optimized.onnx")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    del model.graph.value_info[:]
    onnx.save(model, directory / "optimized.onnx")
    for text in both(gather_page([directory])):
        assert "The peak of the activations of optimized.onnx is not known" in text


def test_a_failed_export_says_why_and_what_would_fix_it(directory: Path) -> None:
    manifest = edit(directory)
    asked = [*manifest["options"]["target_runtimes"], "qnn_context_binary"]
    edit(directory, options={**manifest["options"], "target_runtimes": asked})
    error = "lower: 1 of 2 ops would run on the CPU"
    (directory / "failure.json").write_text(json.dumps({"error": error}))
    nodes = [
        {"node": "a", "op": "Relu", "unit": "npu", "reason": ""},
        {"node": "b", "op": "Einsum", "unit": "cpu", "reason": "refused"},
    ]
    (directory / "placement.json").write_text(json.dumps(nodes))
    page = gather(directory)
    assert page.fits == "does not fit"
    for text in both(PageData((page,))):
        assert error in text
        assert "write it as MatMul with Transpose and Reshape around it (exact)" in text
    (directory / "placement.json").unlink()
    assert gather(directory).fits == "failed"


# Layers, bench, claims


@dataclass(frozen=True)
class Layer:
    node: str
    op: str
    time_ms: float | None
    sqnr_db: float | None
    provenance: Provenance = "host"


def test_layers_have_a_section_only_where_there_are_any(directory: Path) -> None:
    assert "slowest layers" not in both(gather_page([directory]))[0]
    layers = (Layer("first", "Conv", 0.25, None), Layer("second", "Relu", 1.5, 31.25))
    for text in both(gather_page([directory], layers=lambda one: layers)):
        assert "The 2 slowest layers" in text and "The 1 noisiest layers" in text
        assert text.index("second") < text.index("first")  # the slowest comes first
        assert "1.500" in text and "31.2 dB" in text
        assert "this machine's CPU, and say nothing of a phone's" in text


def test_a_layers_emulated_time_is_not_shown(directory: Path) -> None:
    layers = (Layer("first", "Conv", 4321.5, 25.0, "emulated"),)
    for text in both(gather_page([directory], layers=lambda one: layers)):
        assert "4321" not in text
        assert "No layer was timed." in text and "25.0 dB" in text


def test_what_bench_wrote_is_shown_with_its_verdicts(directory: Path, tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    file.write_text(
        json.dumps(benchmark({"base": 1, "quick": 2, "slow": 0.5, "same": 1}).to_dict())
    )
    for text in both(gather_page([directory], bench=file)):
        assert "quick is faster than base: 2.0" in text
        assert "slow is slower than base: 0.50 times its speed" in text
        assert "same beside base is inconclusive" in text
        assert "Noise floor 2.0%" in text and "a hot day" in text
        assert "Parity of quick: exact to base" in text
        assert "12.5 ms" in text


def test_a_claim_is_judged_only_by_its_verdict(rich: Path, tmp_path: Path) -> None:
    claims = all_recipes()["padre"].claims
    for text in both(gather_page([rich])):
        assert text.count("not judged") == len(claims) >= 2
        assert "the paper: 11x to 43x faster" in text
    (sha,) = {one["sha256"] for one in edit(rich)["artifacts"] if one["stage"] == "run"}
    number = Measurement("sqnr_db", 17.5, "dB", "emulated", artifact_sha256=sha)
    fails = Verdict(
        "padre", "claim", claims[0].metric, "fail", ">= 30 dB", "17.5 dB", measurement=number
    )
    elsewhere = replace(number, metric="size_bytes", artifact_sha256="0" * 64)
    verdicts = [
        fails,
        Verdict(
            "padre w8a8 on s24",
            "regression",
            "size_bytes",
            "inconclusive",
            "<= 5",
            "6",
            "",
            elsewhere,
        ),
        Verdict("padre_of_mine", "regression", "size_bytes", "pass", "<= 5 B", "4 B"),
    ]
    file = tmp_path / "verdicts.json"
    for text in (json.dumps([one.to_dict() for one in verdicts]), to_json(verdicts)):
        file.write_text(text)
        data = gather_page([rich], verdicts=file)
        rows = data.exports[0].claims
        found = [(row.metric, row.outcome, row.reason) for row in rows]
        assert found == [
            (claims[0].metric, "fail", "17.5 dB"),
            *((one.metric, "not judged", "") for one in claims[1:]),
            ("size_bytes", "inconclusive", "padre w8a8 on s24: 6; not on these files"),
        ]
        assert data.notes == (f"{file} also judges padre_of_mine: not shown here.",)
        for text in both(data):
            assert "does not hold" in text and "inconclusive: within the noise" in text


def test_names_are_escaped_in_text_and_in_drawings(rich: Path, tmp_path: Path) -> None:
    bench = tmp_path / "bench.json"
    bench.write_text(json.dumps(benchmark({"base": 1, HOSTILE: 2}).to_dict()))
    data = gather_page([rich], bench=bench)
    html, markdown = html_page(data), markdown_page(data)
    drawings = re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)
    whole = "&lt;script&gt;hacked = 1&lt;/script&gt;|`$\\frac{1}$"
    assert sum(whole in one for one in drawings) == 2  # the narrow ones leave out its middle
    assert "<script" not in html and "&lt;script&gt;" in html
    assert "\\<script\\>" in markdown and "<script" not in markdown.replace("\\<script", "")
    assert not re.search(r"(src|href)=\"(?!#)", html)
    assert "http://" not in html.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in html


def test_a_bench_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    document = benchmark({"base": 1, "quick": 2}).to_dict()
    document["result"]["comparisons"][0]["verdict"] = "best"
    (tmp_path / "bench.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match="unknown verdict 'best'"):
        read_bench(tmp_path / "bench.json")
