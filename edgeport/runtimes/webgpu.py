"""The runtime `webgpu`: a folder of WGSL shaders and a program.json, run by wgpu on this machine.

A recipe's exporter writes the folder; a browser runs the same files. The GPU's driver is vendor
code, so the flow loads this in a child process.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import wgpu
from numpy.typing import NDArray
from wgpu.backends import wgpu_native

from edgeport.errors import InputError
from edgeport.runtimes import CompileRequest
from edgeport.runtimes.webgpu_driver import GET_DRIVER
from edgeport.runtimes.webgpu_program import (
    PIXEL_BYTES,
    Buffer,
    Compute,
    Document,
    Draw,
    read_document,
)
from edgeport.types import NodeReport

NAME = "webgpu"
_SOFTWARE = ("llvmpipe", "lavapipe", "swiftshader", "basic render", "warp", "software")
_PIXELS = {"rgba8unorm": np.uint8, "rgba16float": np.float16, "rgba32float": np.float32}
_BLENDS = {
    "add": {"operation": "add", "src_factor": "one", "dst_factor": "one"},
    "over": {"operation": "add", "src_factor": "one", "dst_factor": "one-minus-src-alpha"},
}
_ROW_ALIGNMENT = 256  # bytes, of a texture's copy: the WebGPU specification
_USAGES = {
    "storage": wgpu.BufferUsage.STORAGE,
    "uniform": wgpu.BufferUsage.UNIFORM,
    "indirect": wgpu.BufferUsage.INDIRECT,
    "copy_dst": wgpu.BufferUsage.COPY_DST,
}
_OPTIONAL = ("timestamp-query", "float32-blendable")


@dataclass(frozen=True)
class Adapter:
    """The GPU and its driver: `kind` is WebGPU's adapter type, such as "IntegratedGPU"."""

    name: str
    kind: str
    backend: str

    @property
    def is_software(self) -> bool:
        """Whether a CPU computes it: what it measures says nothing of a GPU."""
        name = self.name.lower()
        return self.kind.lower() == "cpu" or any(one in name for one in _SOFTWARE)


@dataclass(frozen=True)
class _Step:
    """A pass with its pipeline and bindings made."""

    work: Compute | Draw
    pipeline: Any
    group: Any


class Session:
    """A folder's programs on a GPU, for frames of one size.

    `adapter` says what computes; `has_timestamps` whether `pass_seconds` works. Raises InputError
    where the adapter lacks what the programs need, or refuses a shader.
    """

    def __init__(self, document: Document) -> None:
        adapter = _request_adapter()
        info = adapter.info
        self.adapter = Adapter(info["device"], info["adapter_type"], info["backend_type"])
        _check_limits(document, adapter)
        self.document = document
        self._device = _request_device(document, adapter)
        self.has_timestamps = "timestamp-query" in self._device.features
        with _told(document.directory.name):
            self._buffers = {one.name: self._buffer(one) for one in document.buffers.values()}
            self._textures = {name: self._texture(name) for name in document.textures}
        self._modules: dict[Path, Any] = {}
        self._fence = self._device.create_buffer(size=4, usage=wgpu.BufferUsage.COPY_SRC)
        self._programs = {one.name: one for one in document.programs}
        self._steps = {
            one.name: tuple(self._step(step) for step in one.passes) for one in document.programs
        }

    def run(self, feed: Mapping[str, NDArray[Any]]) -> tuple[NDArray[Any], ...]:
        """Returns each program's image in order, float32 [height, width, 3].

        `feed` has "view", world to camera [4, 4], and "intrinsics" [4]: fx, fy, cx, cy in pixels.
        """
        return tuple(self.image(name, feed) for name in self._steps)

    def image(self, program: str, feed: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Returns one program's image, float32 [height, width, 3]."""
        self.frame(program, feed)
        return self.read_texture(self._programs[program].output)[:, :, :3]

    def frame(
        self, program: str, feed: Mapping[str, NDArray[Any]], passes: int | None = None
    ) -> None:
        """Computes one image and returns when the GPU has finished it; nothing is read back.

        `passes` leaves out all but the first ones: what they cost shows where the time goes.
        """
        self._device.queue.submit([self._encode(program, feed, None, passes).finish()])
        # wgpu 0.32 cannot wait for the queue by itself; reading a word back waits for all before.
        self._device.queue.read_buffer(self._fence)

    def read_texture(self, name: str) -> NDArray[np.float32]:
        """Returns what the last frame left in a texture, float32 [height, width, 4]."""
        (width, height), kind = self.document.frame, self.document.textures[name]
        row = width * PIXEL_BYTES[kind]
        padded = -(-row // _ROW_ALIGNMENT) * _ROW_ALIGNMENT
        data = self._device.queue.read_texture(
            {"texture": self._textures[name]},
            {"bytes_per_row": padded, "rows_per_image": height},
            (width, height, 1),
        )
        rows = np.frombuffer(data, np.uint8).reshape(height, padded)[:, :row]
        pixels = np.ascontiguousarray(rows).view(_PIXELS[kind]).reshape(height, width, 4)
        return pixels.astype(np.float32) / np.float32(255 if kind == "rgba8unorm" else 1)

    def read_buffer(self, name: str) -> NDArray[np.uint32]:
        """Returns what the last frame left in a buffer, as 32-bit words."""
        return np.frombuffer(self._device.queue.read_buffer(self._buffers[name]), np.uint32)

    def pass_seconds(self, program: str, feed: Mapping[str, NDArray[Any]]) -> dict[str, float]:
        """Returns the GPU's own seconds for each pass of one frame, by label.

        Raises InputError where the adapter has no timestamp queries.
        """
        if not self.has_timestamps:
            raise InputError(f"{self.adapter.name} has no timestamp queries: time whole frames")
        steps = self._steps[program]
        count = 2 * len(steps)
        queries = self._device.create_query_set(type="timestamp", count=count)
        usage = wgpu.BufferUsage.QUERY_RESOLVE | wgpu.BufferUsage.COPY_SRC
        resolved = self._device.create_buffer(size=8 * count, usage=usage)
        encoder = self._encode(program, feed, queries)
        encoder.resolve_query_set(queries, 0, count, resolved, 0)
        self._device.queue.submit([encoder.finish()])
        ticks = np.frombuffer(self._device.queue.read_buffer(resolved), np.uint64)
        # wgpu gives the GPU's ticks, and only its C interface says how many nanoseconds one is.
        tick_ns = float(wgpu_native.lib.wgpuQueueGetTimestampPeriod(self._device.queue._internal))
        seconds: dict[str, float] = {}
        for step, spent in zip(steps, np.diff(ticks.reshape(-1, 2).astype(np.float64))):
            label = step.work.label
            seconds[label] = seconds.get(label, 0.0) + float(spent[0]) * tick_ns * 1e-9
        return seconds

    def compute_passes(self, program: str) -> int:
        """Returns how many compute passes come before a program's first draw."""
        kinds = [isinstance(step.work, Compute) for step in self._steps[program]]
        return kinds.index(False) if False in kinds else len(kinds)

    def bytes_of(self, program: str) -> int:
        """Returns the bytes of buffers and textures that a program needs."""
        return self.document.bytes_of(self._programs[program])

    def _encode(
        self,
        program: str,
        feed: Mapping[str, NDArray[Any]],
        queries: Any,
        passes: int | None = None,
    ) -> Any:
        self._write_uniforms(feed)
        encoder = self._device.create_command_encoder()
        for index, step in enumerate(self._steps[program][:passes]):
            times = None
            if queries is not None:
                times = {
                    "query_set": queries,
                    "beginning_of_pass_write_index": 2 * index,
                    "end_of_pass_write_index": 2 * index + 1,
                }
            if isinstance(step.work, Compute):
                _dispatch(encoder, step, step.work, times)
            else:
                self._draw(encoder, step, step.work, times)
        return encoder

    def _draw(self, encoder: Any, step: _Step, work: Draw, times: Any) -> None:
        attachment = {
            "view": self._textures[work.target].create_view(),
            "load_op": "load" if work.clear is None else "clear",
            "store_op": "store",
            "clear_value": work.clear or (0, 0, 0, 0),
        }
        drawing = encoder.begin_render_pass(color_attachments=[attachment], timestamp_writes=times)
        drawing.set_pipeline(step.pipeline)
        drawing.set_bind_group(0, step.group)
        if work.indirect is None:
            drawing.draw(work.vertices, work.instances)
        else:
            drawing.draw_indirect(self._buffers[work.indirect], 0)
        drawing.end()

    def _write_uniforms(self, feed: Mapping[str, NDArray[Any]]) -> None:
        given = {**_camera(feed), "frame": np.array([*self.document.frame, 0, 0], np.float32)}
        for one in self.document.buffers.values():
            if one.uniform:
                content = np.concatenate([given[name] for name in one.uniform])
                self._device.queue.write_buffer(self._buffers[one.name], 0, content)

    def _buffer(self, one: Buffer) -> Any:
        usage = wgpu.BufferUsage.COPY_SRC | wgpu.BufferUsage.COPY_DST
        for name in one.usage:
            usage |= _USAGES[name]
        made = self._device.create_buffer(label=one.name, size=one.bytes, usage=usage)
        if one.file is not None:
            self._device.queue.write_buffer(made, 0, one.file.read_bytes())
        if one.values:
            self._device.queue.write_buffer(made, 0, np.array(one.values, np.float32))
        return made

    def _texture(self, name: str) -> Any:
        usage = wgpu.TextureUsage
        return self._device.create_texture(
            label=name,
            size=(*self.document.frame, 1),
            format=self.document.textures[name],
            usage=usage.RENDER_ATTACHMENT | usage.TEXTURE_BINDING | usage.COPY_SRC,
        )

    def _step(self, work: Compute | Draw) -> _Step:
        with _told(f"{work.shader.name} ({work.label})"):
            module = self._module(work.shader)
            stage = {"module": module, "constants": dict(work.constants)}
            if isinstance(work, Compute):
                pipeline = self._device.create_compute_pipeline(
                    label=work.label, layout="auto", compute={**stage, "entry_point": work.entry}
                )
            else:
                pipeline = self._render_pipeline(work, stage)
            entries = [
                {"binding": number, "resource": self._resource(name)}
                for number, name in work.bindings.items()
            ]
            layout = pipeline.get_bind_group_layout(0)
            return _Step(
                work, pipeline, self._device.create_bind_group(layout=layout, entries=entries)
            )

    def _render_pipeline(self, work: Draw, stage: Mapping[str, Any]) -> Any:
        target: dict[str, Any] = {"format": self.document.textures[work.target]}
        if work.blend != "none":
            target["blend"] = {"color": _BLENDS[work.blend], "alpha": _BLENDS[work.blend]}
        return self._device.create_render_pipeline(
            label=work.label,
            layout="auto",
            vertex={**stage, "entry_point": work.vertex},
            primitive={"topology": work.topology},
            fragment={**stage, "entry_point": work.fragment, "targets": [target]},
        )

    def _module(self, file: Path) -> Any:
        if file not in self._modules:
            code = file.read_text(encoding="utf-8")
            self._modules[file] = self._device.create_shader_module(label=file.name, code=code)
        return self._modules[file]

    def _resource(self, name: str) -> Any:
        if name in self._textures:
            return self._textures[name].create_view()
        return {"buffer": self._buffers[name]}


def load(
    directory: Path, device: Mapping[str, Any], frame: tuple[int, int] | None = None
) -> Session:
    """Returns the folder's programs, ready to run; `frame` is another size, (width, height).

    Raises InputError for a damaged folder, and where this machine's GPU cannot run it.
    """
    return Session(read_document(directory, frame))


def compile_model(request: CompileRequest) -> dict[str, Any]:
    """Raises InputError: an ONNX graph is not compiled for this runtime."""
    raise InputError(
        f"webgpu compiles no ONNX graph ({Path(request.model).name}): its folder is what a"
        " recipe's exporter writes, such as wsr_splatting's"
    )


def report_nodes(directory: Path) -> list[NodeReport]:
    """Returns a report for each pass of each program: all of them run on the GPU."""
    return [
        NodeReport(f"{program.name}/{step.label}", _entry(step), "gpu")
        for program in read_document(directory).programs
        for step in program.passes
    ]


def find_adapter() -> Adapter:
    """Returns the GPU that a session would use; raises InputError where there is none."""
    info = _request_adapter().info
    return Adapter(info["device"], info["adapter_type"], info["backend_type"])


def _entry(step: Compute | Draw) -> str:
    return step.entry if isinstance(step, Compute) else f"{step.vertex}+{step.fragment}"


def _dispatch(encoder: Any, step: _Step, work: Compute, times: Any) -> None:
    computing = encoder.begin_compute_pass(timestamp_writes=times)
    computing.set_pipeline(step.pipeline)
    computing.set_bind_group(0, step.group)
    computing.dispatch_workgroups(*work.workgroups)
    computing.end()


def _request_adapter() -> Any:
    try:
        adapter = wgpu.gpu.request_adapter_sync(power_preference="high-performance")
    except (RuntimeError, OSError) as error:  # what wgpu raises without a driver or its library
        raise InputError(f"webgpu finds no GPU here: {GET_DRIVER}") from error
    if adapter.info["backend_type"] == "OpenGL":  # has no storage buffers in the vertex stage
        raise InputError(f"webgpu finds only OpenGL here, no Vulkan driver: {GET_DRIVER}")
    return adapter


def _request_device(document: Document, adapter: Any) -> Any:
    wanted = [name for name in _OPTIONAL if name in adapter.features]
    limits = {name: adapter.limits[name] for name in _needs(document)}
    return adapter.request_device_sync(required_features=wanted, required_limits=limits)


def _needs(document: Document) -> dict[str, int]:
    """Returns the limits of WebGPU that the document's sizes touch, and what it needs of each."""
    buffers = document.buffers.values()
    passes = [step for program in document.programs for step in program.passes]
    groups = [max(step.workgroups) for step in passes if isinstance(step, Compute)]
    storage = [one.bytes for one in buffers if "storage" in one.usage]
    uniform = [one.bytes for one in buffers if "uniform" in one.usage]
    return {
        "max-buffer-size": max(one.bytes for one in buffers),
        "max-storage-buffer-binding-size": max(storage, default=0),
        "max-uniform-buffer-binding-size": max(uniform, default=0),
        "max-texture-dimension-2d": max(document.frame),
        "max-compute-workgroups-per-dimension": max(groups, default=0),
    }


def _check_limits(document: Document, adapter: Any) -> None:
    for name, need in _needs(document).items():
        if need > adapter.limits[name]:
            raise InputError(
                f"{document.directory.name} needs a {name} of {need}, and {adapter.info['device']}"
                f" has {adapter.limits[name]}: make the scene or the frame smaller"
            )
    blended = {
        document.textures[step.target]
        for program in document.programs
        for step in program.passes
        if isinstance(step, Draw) and step.blend != "none"
    }
    if "rgba32float" in blended and "float32-blendable" not in adapter.features:
        raise InputError(
            f"{adapter.info['device']} cannot blend rgba32float (float32-blendable): export with"
            " rgba16float"
        )


def _camera(feed: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
    """Returns the feed's inputs, flat; raises InputError for a missing or unusable one."""
    flat = {}
    for name, shape in (("view", (4, 4)), ("intrinsics", (4,))):
        if name not in feed:
            raise InputError(f"the feed has no {name}: give view [4, 4] and intrinsics [4]")
        value = np.asarray(feed[name], np.float32)
        if value.shape != shape or not np.isfinite(value).all():
            raise InputError(f"{name}: expected {list(shape)} finite numbers, not {value.shape}")
        flat[name] = value.ravel()
    return flat


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Turns what the driver or the shader compiler refuses into one line."""
    try:
        yield
    except wgpu.GPUError as error:
        lines = " ".join(str(error).split())
        raise InputError(f"webgpu refuses {what}: {lines[:300]}") from error
