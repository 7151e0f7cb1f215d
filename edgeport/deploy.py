"""DEPLOY.md: what an Android developer needs to load the exported files, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def deploy_markdown(manifest: Mapping[str, Any]) -> str:
    """Returns the text of DEPLOY.md for an export's manifest."""
    device = manifest["device"]
    source = manifest["source"]
    variant = f" ({source['variant']})" if source["variant"] else ""
    has_binary = "model.bin" in manifest["files"]
    portable = "quantized.onnx" if "quantized.onnx" in manifest["files"] else "optimized.onnx"
    sections = [
        f"# {source['name']}{variant} on {device['name']}",
        f"Precision {manifest['options']['precision']}, chipset {device['chipset']},"
        f" made by edgeport {manifest['tools']['edgeport']}.",
        "## Inputs and outputs",
        _tensor_table(manifest),
        _value_sentence(manifest),
        *(_binary_sections(manifest) if has_binary else ()),
        f"## On any phone: {portable}",
        f"`{portable}` runs on the CPU of every phone with onnxruntime-android"
        f" {manifest['tools']['onnxruntime']} or newer.{_data_sentence(portable, manifest)}",
        "```kotlin\n"
        "val environment = OrtEnvironment.getEnvironment()\n"
        f'val session = environment.createSession("$filesDir/{portable}")\n'
        "```",
        "## Check it on the phone",
        "`parity_inputs.npz` and `parity_outputs.npz` hold inputs and the reference's answers"
        " (keys `sample:name`). The same inputs on the phone should give an SQNR near the one that"
        " was measured here:",
        _parity_table(manifest["artifacts"]),
    ]
    return "\n\n".join(sections) + "\n"


def _data_sentence(model: str, manifest: Mapping[str, Any]) -> str:
    """Returns where the weights of a large model lie; nothing where they are in the file itself."""
    data = f"{model}.data"
    return f" Keep `{data}`, its weights, beside it." if data in manifest["files"] else ""


def _value_sentence(manifest: Mapping[str, Any]) -> str:
    """Returns what the values at both ends are: floats, or integers that the app converts."""
    boundary = manifest["options"]["boundary"]
    normalised = (
        " Images are given in 0..1; the graph subtracts the mean and divides by the deviation."
        if boundary["mean"]
        else ""
    )
    reading = "real = scale x (stored - zero point)"
    if manifest.get("integer_io"):
        return (
            f"{', '.join(manifest['integer_io'])}: the stored integers themselves, {reading}."
            f" `parity_integers.npz` holds the parity inputs so.{normalised}"
        )
    return (
        "Values at both ends are ordinary floats: a quantized graph quantizes its inputs and"
        f" dequantizes its outputs itself, with the scales in the last column: {reading}."
        f"{normalised}"
    )


def _tensor_table(manifest: Mapping[str, Any]) -> str:
    scales, integers = manifest.get("io_scales", {}), manifest.get("integer_io", ())
    rows = []
    for role, key in (("input", "inputs"), ("output", "outputs")):
        for tensor in manifest[key]:
            name, shape = tensor["name"], tensor["shape"]
            inside = scales.get(name)
            rows.append(
                (
                    role,
                    name,
                    inside["dtype"] if inside and name in integers else tensor["dtype"],
                    " x ".join(map(str, shape)),
                    _layout(shape, name in manifest["options"]["boundary"]["channel_last"]),
                    f"{inside['dtype']}, {inside['scale']:.6g}, {inside['zero_point']}"
                    if inside
                    else "-",
                )
            )
    titles = ("", "name", "type", "shape", "layout", "inside: type, scale, zero point")
    return _table(titles, rows)


def _layout(shape: Sequence[int], channels_last: bool) -> str:
    if channels_last:
        return "NHWC" if len(shape) == 4 else "channels last"
    return "NCHW" if len(shape) == 4 else "batch first"


def _parity_table(artifacts: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (
            artifact["path"],
            artifact["computed"],
            artifact["parity"][0]["provenance"],
            f"{float(artifact['parity'][0]['value']):.1f}",
            f"{float(artifact['parity'][1]['value']):.2e}",
        )
        for artifact in artifacts
        if artifact["parity"]
    ]
    return _table(("file", "computed", "provenance", "SQNR dB", "max abs error"), rows)


def _binary_sections(manifest: Mapping[str, Any]) -> tuple[str, ...]:
    facts = manifest["device"]["facts"]
    version = manifest["compiled"]["qnn_context_binary"]["qairt_version"] or "unknown"
    least = ".".join(version.removeprefix("v").split(".")[:3])
    tools = manifest["tools"]
    return (
        "## On the NPU: model_ctx.onnx and model.bin",
        f"`model.bin` is a QNN context binary for soc_model {facts['soc_model']['value']}"
        f" (Hexagon v{facts['htp_arch']['value']}) and loads on no other; `model_ctx.onnx` is the"
        " small ONNX file that names it. Keep both in one folder under these names.",
        f"- QAIRT inside the binary: {version}. The phone needs QAIRT {least} or newer: an older"
        " runtime does not load it. The app brings it as `qnn-runtime` (below).\n"
        f"- Compiled with onnxruntime {tools['onnxruntime']} and onnxruntime-qnn"
        f" {tools['onnxruntime-qnn']}.",
        "```kotlin\n"
        "// build.gradle.kts\n"
        "implementation("
        f'"com.microsoft.onnxruntime:onnxruntime-android:{tools["onnxruntime"]}")\n'
        f'implementation("com.qualcomm.qti:onnxruntime-android-qnn:{tools["onnxruntime-qnn"]}")\n'
        f'implementation("com.qualcomm.qti:qnn-runtime:{least}")\n'
        "```",
        "```kotlin\n"
        "val environment = OrtEnvironment.getEnvironment()\n"
        'val qnn = "QNNExecutionProvider"\n'
        "environment.registerExecutionProviderLibrary("
        'qnn, "libonnxruntime_providers_qnn.so")\n'
        "val options = OrtSession.SessionOptions()\n"
        'options.addConfigEntry("session.disable_cpu_ep_fallback", "1")\n'
        "options.addExecutionProvider(\n"
        "    environment.epDevices.filter { it.epName == qnn },\n"
        '    mapOf("backend_type" to "htp", "htp_performance_mode" to "burst"),\n'
        ")\n"
        'val session = environment.createSession("$filesDir/model_ctx.onnx", options)\n'
        "```",
        "The Gradle versions are those of the tools that compiled the binary; where one is not yet"
        " published, take the next newer. These lines were not run on a phone here.",
    )


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
