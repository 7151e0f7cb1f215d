"""DEPLOY.md: what an Android developer needs to load the exported files, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from typing import Any


def deploy_markdown(manifest: Mapping[str, Any]) -> str:
    """Returns the text of DEPLOY.md for an export's manifest."""
    device = manifest["device"]
    source = manifest["source"]
    variant = f" ({source['variant']})" if source["variant"] else ""
    files = manifest["files"]
    sections = [
        f"# {source['name']}{variant} on {device['name']}",
        f"Precision {manifest['options']['precision']}, chipset {device['chipset']},"
        f" made by edgeport {manifest['tools']['edgeport']}.",
        "## Inputs and outputs",
        _tensor_table(manifest),
        _value_sentence(manifest),
        *(_binary_sections(manifest) if "model.bin" in files else ()),
        *(_embedded_sections(manifest) if "precompiled_qnn.onnx" in files else ()),
        *(_dlc_sections(manifest) if "model.dlc" in files else ()),
        *(_litert_sections(manifest) if "model.tflite" in files else ()),
        *(_executorch_sections(manifest) if "model.pte" in files else ()),
        *(part for name in _portable(files) for part in _portable_sections(name, manifest)),
        "## Check it on the phone",
        "`parity_inputs.npz` and `parity_outputs.npz` hold inputs and the reference's answers"
        " (keys `sample:name`). The same inputs on the phone should give an SQNR near the one that"
        " was measured here:",
        _parity_table(manifest["artifacts"]),
    ]
    return "\n\n".join(sections) + "\n"


def _portable(files: Container[str]) -> list[str]:
    """Returns the ONNX file that every phone runs; none where only converters were asked for."""
    return [name for name in ("quantized.onnx", "optimized.onnx") if name in files][:1]


def _portable_sections(name: str, manifest: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        f"## On any phone: {name}",
        f"`{name}` runs on the CPU of every phone with onnxruntime-android"
        f" {manifest['tools']['onnxruntime']} or newer.{_data_sentence(name, manifest)}",
        "```kotlin\n"
        "val environment = OrtEnvironment.getEnvironment()\n"
        f'val session = environment.createSession("$filesDir/{name}")\n'
        "```",
    )


def _litert_sections(manifest: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns how an app loads model.tflite, and which of its operators the GPU takes."""
    facts = manifest["compiled"]["tflite"]
    units = manifest["placement"].get("tflite", {})
    taken = units.get("gpu", 0)
    left = sum(units.values()) - taken
    accelerator = "GPU" if taken and not left else "CPU"
    version = facts["tools"]["ai-edge-litert"]
    buffers = "\n".join(_buffer_lines(facts))
    return (
        "## With LiteRT: model.tflite",
        "`model.tflite` runs on the CPU of every phone (XNNPACK). By the rules of LiteRT's GPU"
        f" delegate {taken} of its {taken + left} operators run on a GPU, and {left} do not"
        f"{': manifest.json says which and why' if left else ''}."
        f" Its signature `{facts['signature']}` has the names and the order of the tensors above."
        f"{_integer_sentence(manifest, facts)}",
        "```kotlin\n"
        "// build.gradle.kts\n"
        f'implementation("com.google.ai.edge.litert:litert:{version}")\n'
        "// for Accelerator.GPU:\n"
        f'implementation("com.google.ai.edge.litert:litert-gpu:{version}")\n'
        "```",
        "```kotlin\n"
        "val model = CompiledModel.create(\n"
        f'    context.assets, "model.tflite", CompiledModel.Options(Accelerator.{accelerator}))\n'
        "val inputs = model.createInputBuffers()\n"
        "val outputs = model.createOutputBuffers()\n"
        f"{buffers}\n"
        "```",
        "These lines were not run on a phone here.",
    )


def _buffer_lines(facts: Mapping[str, Any]) -> list[str]:
    """Returns the lines of Kotlin that fill the inputs, run, and read the outputs."""
    kinds = {
        "float32": ("Float", "FloatArray"),
        "int32": ("Int", "IntArray"),
        "bool": ("Boolean", "BooleanArray"),
    }
    lines = []
    for place, tensor in enumerate(facts["inputs"]):
        kind, array = kinds.get(tensor["dtype"], ("Int8", "ByteArray"))
        size = math.prod(tensor["shape"])
        what = f"{tensor['name']}: {array} of {size}"
        lines.append(f"inputs[{place}].write{kind}(values{place})  // {what}")
    lines.append("model.run(inputs, outputs)")
    for place, tensor in enumerate(facts["outputs"]):
        kind = kinds.get(tensor["dtype"], ("Int8", "ByteArray"))[0]
        lines.append(f"val result{place} = outputs[{place}].read{kind}()  // {tensor['name']}")
    return lines


def _integer_sentence(manifest: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """Returns which tensors are narrower in the file than in the table; nothing where none is."""
    wide = {one["name"]: one["dtype"] for key in ("inputs", "outputs") for one in manifest[key]}
    narrow = [
        f"`{one['name']}` is {one['dtype']} in this file"
        for key in ("inputs", "outputs")
        for one in facts[key]
        if one["dtype"] != wide[one["name"]]
    ]
    return f" {'; '.join(narrow)}." if narrow else ""


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
    if "model.tflite" in manifest["files"] and not manifest.get("io_scales"):
        return f"Values at both ends are of the types above; none is quantized.{normalised}"
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
    return (
        "## On the NPU: model_ctx.onnx and model.bin",
        f"`model.bin` is a QNN context binary for {_chip(manifest)} and loads on no other;"
        " `model_ctx.onnx` is the small ONNX file that names it. Keep both in one folder under"
        " these names.",
        *_provider_parts(manifest, "qnn_context_binary", "model_ctx.onnx"),
    )


def _embedded_sections(manifest: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        "## On the NPU, in one file: precompiled_qnn.onnx",
        f"`precompiled_qnn.onnx` has the QNN context binary for {_chip(manifest)} inside it, and"
        " loads on no other.",
        *_provider_parts(manifest, "precompiled_qnn_onnx", "precompiled_qnn.onnx"),
    )


def _dlc_sections(manifest: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        "## On the NPU, compiled when it is loaded: model.dlc",
        "`model.dlc` names no chip: the phone's QAIRT compiles it each time that it loads it,"
        " unless the app keeps what was compiled. Every operator was checked against the NPU of"
        f" {_chip(manifest)}; another chip may refuse one.",
        f"- Written by QAIRT {manifest['compiled']['qnn_dlc']['qairt_version']}; load it with"
        f" QAIRT {_qairt(manifest, 'qnn_dlc')} or newer.",
        "```shell\n"
        "# on the phone, with qnn-net-run and libQnnHtp.so of the QAIRT SDK\n"
        "qnn-net-run --backend libQnnHtp.so --dlc_path model.dlc --input_list inputs.txt\n"
        "```",
        "An app composes it with `QnnSystemDlc_composeGraphs` of the SDK's C interface. These lines"
        " were not run on a phone here.",
    )


def _executorch_sections(manifest: Mapping[str, Any]) -> tuple[str, ...]:
    names = ", ".join(tensor["name"] for tensor in manifest["inputs"])
    return (
        "## With ExecuTorch: model.pte",
        "`model.pte` runs on the CPU of every phone: XNNPACK computes"
        f" {manifest['compiled']['executorch']['delegated']} of its operators, ExecuTorch's own"
        " kernels the others. Inputs and outputs stand in the order above, with the"
        " types that the model has.",
        "```kotlin\n"
        "// build.gradle.kts\n"
        'implementation("org.pytorch:executorch-android:'
        f'{manifest["tools"]["executorch"]}")\n'
        "```",
        "```kotlin\n"
        'val module = Module.load("$filesDir/model.pte")\n'
        f"// one Tensor.fromBlob(values, shape) each: {names}\n"
        "val outputs = module.forward(*inputs.map { EValue.from(it) }.toTypedArray())\n"
        "```",
        "These lines were not run on a phone here.",
    )


def _chip(manifest: Mapping[str, Any]) -> str:
    facts = manifest["device"]["facts"]
    return f"soc_model {facts['soc_model']['value']} (Hexagon v{facts['htp_arch']['value']})"


def _qairt(manifest: Mapping[str, Any], runtime: str) -> str:
    """Returns the QAIRT version of a runtime's compiler, as the phone's has to be at least."""
    version = manifest["compiled"][runtime]["qairt_version"] or "unknown"
    return ".".join(version.removeprefix("v").split(".")[:3])


def _provider_parts(manifest: Mapping[str, Any], runtime: str, file: str) -> tuple[str, ...]:
    """Returns how an app opens `file` with onnxruntime's QNN provider, and which versions."""
    version = manifest["compiled"][runtime]["qairt_version"] or "unknown"
    least, tools = _qairt(manifest, runtime), manifest["tools"]
    return (
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
        f'val session = environment.createSession("$filesDir/{file}", options)\n'
        "```",
        "The Gradle versions are those of the tools that compiled the binary; where one is not yet"
        " published, take the next newer. These lines were not run on a phone here.",
    )


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
