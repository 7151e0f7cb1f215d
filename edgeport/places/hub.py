"""The place `hub`: a real phone of Qualcomm's AI Hub, through Qualcomm's own client.

    --on hub            what was compiled here runs there as it is; an ONNX file is compiled there
    --on hub:quantize   AI Hub quantizes the float model, on the calibration inputs, and compiles it

One inference job gives the outputs and the profile. What runs there is journaled: see hub_jobs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from edgeport.errors import InputError, StageFailed, UnknownName
from edgeport.fingerprint import digest, file_sha256
from edgeport.places import Job, Ran
from edgeport.places.hub_client import (
    Account,
    aloud,
    check_client,
    check_reachable,
    open_client,
    read_account,
)
from edgeport.places.hub_failures import STAGE
from edgeport.places.hub_jobs import Jobs, Journal, Key
from edgeport.places.hub_profile import measurements, placement, placement_note
from edgeport.places.hub_tensors import (
    as_entries,
    as_samples,
    graph_inputs,
    graph_outputs,
    read_entries,
    write_entries,
)
from edgeport.places.same_machine import provenance_of
from edgeport.runtimes.samples import load_samples

# Which files of a runtime AI Hub takes as they are; an ONNX file it compiles itself.
_TAKEN: dict[str, tuple[str, ...]] = {
    "onnx": (),
    "tflite": (".tflite",),
    "qnn_context_binary": (".bin",),
    "qnn_dlc": (".dlc",),
    "precompiled_qnn_onnx": (".onnx", ".bin"),
}
# A precision of ours -> AI Hub's types of weights and activations.
_QUANTIZED = {"w8a8": ("INT8", "INT8"), "w8a16": ("INT8", "INT16"), "w4a16": ("INT4", "INT16")}


@dataclass(frozen=True)
class Made:
    """A model that AI Hub has or will get: what identifies it, and how to come by it."""

    identity: str
    get: Callable[[], Any]


@dataclass(frozen=True)
class Hub:
    """AI Hub; `quantize` leaves the quantization to it."""

    text: str
    quantize: bool

    def check(self, runtimes: Sequence[str]) -> None:
        """Raises InputError for a runtime that AI Hub has not; no client, answer or good token."""
        for name in runtimes:
            if name not in _TAKEN:
                others = ",".join(one for one in _TAKEN if one in runtimes) or ", ".join(_TAKEN)
                raise InputError(f"AI Hub runs no {name}: name others, --target-runtime {others}")
        check_client()
        account = read_account()
        check_reachable(account)
        with open_client(account) as client:
            client.get_frameworks()  # the least that a token opens

    def run(self, job: Job) -> Ran:
        """Returns the phone's outputs and times; raises InputError and StageFailed."""
        account, progress = read_account(), aloud(job.progress)
        with open_client(account) as client:
            journal = Journal(job.journal, account.api_url)
            jobs = Jobs(client, journal, job.limits.seconds, progress)
            work = _Work(job, account, jobs, _find_phone(client, job.device.name))
            if not self.quantize:
                return work.ran(work.taken())
            made = work.quantized()
            return replace(work.ran(made), file=work.downloaded(made))


def open_place(text: str) -> Hub:
    """Returns AI Hub as the user named it; raises InputError for another ending."""
    if text not in ("hub", "hub:quantize"):
        raise InputError(f"--on {text}: it is hub, or hub:quantize")
    return Hub(text, quantize=text == "hub:quantize")


def _find_phone(client: Any, name: str) -> Any:
    """Returns the phone that AI Hub gives for this name, with the newest system it has."""
    import qai_hub

    if not client.get_devices(name=name):
        unknown = UnknownName("AI Hub device", name, {one.name for one in client.get_devices()})
        unknown.add_note("qai-hub list-devices shows them with their systems")
        raise unknown
    return qai_hub.Device(name=name)


@dataclass(frozen=True)
class _Work:
    """One job of ours on AI Hub."""

    job: Job
    account: Account
    jobs: Jobs
    phone: Any

    def taken(self) -> Made:
        """Returns the files as they are, or AI Hub's compilation of the ONNX file."""
        suffixes = _TAKEN[self.job.runtime]
        if not suffixes:
            return self._compiled(self._file(_with_data(self.job.model)))
        return self._file([file for file in self.job.files if file.suffix in suffixes])

    def quantized(self) -> Made:
        """Returns AI Hub's compilation of its own quantization of the float model."""
        import qai_hub

        if self.job.precision not in _QUANTIZED:
            raise InputError(
                f"hub:quantize: AI Hub quantizes to {', '.join(_QUANTIZED)}, and this export is"
                f" {self.job.precision}"
            )
        types = _QUANTIZED[self.job.precision]
        weights, activations = (qai_hub.QuantizeDtype[name] for name in types)
        feeds, source = self.job.calibration(), self._file(_with_data(self.job.unquantized))
        key = self._key("quantize", source, " ".join(types), feeds)
        key = {**key, "runtime": "", "device": ""}  # one for all of them
        done = self.jobs.done(
            key,
            lambda: self.jobs.client.submit_quantize_job(
                source.get(),
                self._dataset(feeds, (), self.job.unquantized),
                weights_dtype=weights,
                activations_dtype=activations,
            ),
        )
        return self._compiled(self._target(done))

    def ran(self, made: Made) -> Ran:
        """Returns what an inference job with profiling gives: one job, outputs and times."""
        job, runtime = self.job, self.job.runtime
        done = self.jobs.done(
            self._key("inference", made, "", job.inputs), lambda: self._submitted(made)
        )
        downloaded = done.download_output_data(str(job.workdir / "outputs.h5"))
        if downloaded is None:
            raise StageFailed(STAGE, f"inference job {done.job_id} left no outputs: {done.url}")
        profile = done.download_profile()
        provenance = provenance_of(self.account.host)
        nodes = placement(profile)
        environment = {**_described(done), "runtime": runtime, "job": done.job_id, "url": done.url}
        environment["client"] = f"qai-hub {metadata.version('qai-hub')}"
        notes = [f"{runtime}: job {done.job_id} of {done.date:%Y-%m-%d %H:%M}, {done.url}"]
        notes += [f"{runtime}: {placement_note(nodes)}"] if nodes else []
        if made.identity.startswith("job "):
            notes.append(f"{runtime}: what ran is AI Hub's own compilation: {done.model.url}")
        return Ran(
            as_samples(read_entries(Path(downloaded)), graph_outputs(job.model)),
            provenance,
            measurements(profile, provenance, environment),
            tuple(notes),
            nodes,
        )

    def downloaded(self, made: Made) -> Path:
        """Returns the file that AI Hub made, in the working directory."""
        return Path(made.get().download(str(self.job.workdir / f"hub_{self.job.runtime}")))

    def _submitted(self, made: Made) -> Any:
        """Submits the inference job; its inputs are named as the file there names them."""
        client, model = self.jobs.client, made.get()
        specs = [
            one for graph in client.get_model(model.model_id).input_spec.values() for one in graph
        ]
        inputs = self._dataset(self.job.inputs, specs, self.job.model)
        # Without its own retries: they print, and wait for up to ten minutes.
        return client.submit_inference_job(
            model, self.phone, inputs, name=self.job.files[0].name, retry=False, profile=True
        )

    def _compiled(self, source: Made) -> Made:
        options = f"--target_runtime {self.job.runtime}"
        done = self.jobs.done(
            self._key("compile", source, options),
            lambda: self.jobs.client.submit_compile_job(
                source.get(), self.phone, name=self.job.model.name, options=options
            ),
        )
        return self._target(done)

    def _target(self, done: Any) -> Made:
        """Returns what a finished job made; asked anew, since its type is known only now."""
        client = self.jobs.client

        def get() -> Any:
            target = client.get_job(done.job_id).get_target_model()
            if target is None:
                raise StageFailed(STAGE, f"job {done.job_id} left no model: {done.url}")
            return client.get_model(target.model_id)

        return Made(f"job {done.job_id}", get)

    def _key(self, kind: str, model: Made, options: str, dataset: Path | None = None) -> Key:
        return {
            "kind": kind,
            "model": model.identity,
            "runtime": self.job.runtime,
            "device": self.phone.name,
            "options": options,
            "dataset": file_sha256(dataset) if dataset else "",
        }

    def _file(self, files: Sequence[Path]) -> Made:
        """Returns the file, or the folder that several are put into, as the client uploads it."""
        assert files, f"{self.job.runtime} has no file that AI Hub takes"
        contents = {file.name: file_sha256(file) for file in files}
        identity = contents[files[0].name] if len(files) == 1 else digest(contents)
        client = self.jobs.client
        return Made(
            identity,
            lambda: self.jobs.uploaded(
                {"kind": "model", "model": identity},
                client.get_model,
                lambda: client.upload_model(str(self._upload(files)), name=files[0].name),
            ),
        )

    def _upload(self, files: Sequence[Path]) -> Path:
        """Returns the file, or a zip of several: of a folder the client would leave one itself."""
        from qai_hub.util.zipped_model import zip_model

        if len(files) == 1:
            return files[0]
        folder = self.job.workdir / files[0].name  # what is in the zip has to end in .onnx
        folder.mkdir()
        for file in files:
            (folder / file.name).symlink_to(file.resolve())
        return Path(zip_model(str(self.job.workdir), str(folder)))

    def _dataset(self, samples: Path, specs: Sequence[Any], model: Path) -> Any:
        """Returns the samples of a file as a dataset that AI Hub has."""
        entries = as_entries(load_samples(samples), graph_inputs(model), specs)
        client, file = self.jobs.client, self.job.workdir / f"{samples.stem}.h5"
        return self.jobs.uploaded(
            {"kind": "dataset", "dataset": file_sha256(samples), "names": " ".join(entries)},
            client.get_dataset,
            lambda: client.upload_dataset(str(write_entries(file, entries)), name=samples.name),
        )


def _with_data(model: Path) -> list[Path]:
    """Returns an ONNX file and the file beside it that holds its weights, if it has one."""
    data = model.with_name(f"{model.name}.data")
    return [model, data] if data.is_file() else [model]


def _described(job: Any) -> dict[str, str]:
    """Returns the phone that the job ran on: its name, system and chipset."""
    device = job.device
    chipset = [one.partition(":")[2] for one in device.attributes if one.startswith("chipset:")]
    return {"device": device.name, "os": device.os, "chipset": chipset[0] if chipset else ""}
