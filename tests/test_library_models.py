"""timm and transformers models by name: inputs, weights, names that do not exist, no download."""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support import (
    ON_HOST,
    OUT,
    check_refusal,
    command_environment,
    manifest_of,
    needs_timm,
    needs_transformers,
    tree,
)

import edgeport
from edgeport.catalog import find_source
from edgeport.cli import main
from edgeport.errors import InputError, UnknownName
from edgeport.sources import Built, build

TINY_BERT = (
    "hf:bert,num_hidden_layers=1,hidden_size=16,num_attention_heads=2,intermediate_size=32,"
    "vocab_size=99"
)
TINY_VIT = (
    "hf:vit,num_hidden_layers=1,hidden_size=16,num_attention_heads=2,intermediate_size=32,"
    "image_size=[32,48]"
)
TINY_SEGFORMER = (
    "hf:segformer,depths=[1,1],num_encoder_blocks=2,hidden_sizes=[8,16],sr_ratios=[2,1],"
    "patch_sizes=[7,3],strides=[4,2],num_attention_heads=[1,2],mlp_ratios=[2,2],"
    "decoder_hidden_size=8"
)
REQUEST: dict[str, Any] = {"device": "s24", "target_runtimes": ("onnx",)}

pytestmark = pytest.mark.xdist_group("libraries")  # their import takes seconds


def built(text: str, *inputs: str, **options: Any) -> Built:
    return build(find_source(text, inputs=inputs, **options), 0)


def specs(one: Built) -> list[str]:
    return [str(spec) for spec in one.inputs]


# timm


@needs_timm
def test_a_timm_model_takes_an_image_of_its_size() -> None:
    one = built("timm:test_resnet")
    assert specs(one) == ["image:float32[1,3,160,160]"]
    assert one.random and not one.module.training
    assert any("BatchNorm layers" in note for note in one.notes)


@needs_timm
def test_another_size_and_more_channels() -> None:
    one = built("timm:test_vit", "photo:float32[1,4,96,64]")
    assert specs(one) == ["photo:float32[1,4,96,64]"]
    assert one.module(torch.zeros(1, 4, 96, 64)).shape == (1, 1000)
    with pytest.raises(InputError, match="takes one image: --input image"):
        built("timm:test_vit", "x:float32[3,64]")


@needs_timm
def test_unknown_timm_names_are_suggested() -> None:
    with pytest.raises(UnknownName, match=r"Did you mean 'resnet18'\? \d+ are known\.") as caught:
        built("timm:resnet118")
    assert len(str(caught.value)) < 200


@needs_timm
def test_the_users_weights_are_left_alone(tmp_path: Path) -> None:
    state = built("timm:test_resnet").module.state_dict()
    state = {key: torch.zeros_like(value) for key, value in state.items()}
    save_file(state, tmp_path / "w.safetensors")
    one = built("timm:test_resnet", weights=tmp_path / "w.safetensors")
    assert one.notes == ()
    assert not any(value.any() for value in one.module.state_dict().values())
    del state["fc.weight"]
    save_file(state, tmp_path / "short.safetensors")
    with pytest.raises(InputError, match=r"lack fc\.weight"):
        built("timm:test_resnet", weights=tmp_path / "short.safetensors")


@needs_timm
def test_the_branches_and_the_head_of_a_random_model_are_not_zero() -> None:
    module = built("timm:test_resnet").module
    answers = [module(torch.full((1, 3, 160, 160), value)) for value in (0.0, 1.0)]
    assert float((answers[0] - answers[1]).abs().max()) > 1e-3
    weights = [p for name, p in module.named_parameters() if not name.endswith("bias")]
    assert all(weight.any() for weight in weights)


@needs_timm
@pytest.mark.usefixtures("quick")
def test_a_repeated_export_imports_neither_torch_nor_timm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is the same to the byte, whatever the process."""
    monkeypatch.chdir(tmp_path)
    edgeport.export("timm:test_resnet", output_dir="out", **REQUEST)
    first = manifest_of(tmp_path / "out")
    words = ["export", "timm:test_resnet", *ON_HOST, *OUT]
    code = (
        f"import sys, edgeport.cli\nassert edgeport.cli._run({words!r}, False) == 0\n"
        "print([m for m in ('torch', 'timm', 'onnx') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=command_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "[]"
    assert manifest_of(tmp_path / "out") == first


@needs_timm
def test_the_command_says_it_in_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        main(["export", "timm:resnet118", *ON_HOST, *OUT])
    out, err = capfd.readouterr()
    check_refusal(int(str(left.value.code)), out, err, "Did you mean 'resnet18'")
    assert tree(tmp_path) == set()


@needs_timm
def test_torchvision_beside_another_torch() -> None:
    """A fresh process: importing it once settles it for this one."""
    code = (
        "from edgeport.sources.torchvision_operators import import_torchvision\n"
        "import_torchvision()\nimport_torchvision()\nimport timm, torchvision.transforms\n"
        "print(torchvision.__version__)"
    )
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, env=command_environment(), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip()


# transformers


@needs_transformers
@pytest.mark.parametrize(
    ("text", "inputs", "outputs"),
    [
        (
            TINY_BERT,
            ["input_ids:int64[1,64]", "attention_mask:int64[1,64]"],
            ["last_hidden_state", "pooler_output"],
        ),
        (f"{TINY_BERT},max_position_embeddings=20,task=masked-lm", None, ["logits"]),
        (TINY_VIT, ["pixel_values:float32[1,3,32,48]"], ["logits"]),
        (f"{TINY_VIT},task=features", None, ["last_hidden_state", "pooler_output"]),
        (TINY_SEGFORMER, ["pixel_values:float32[1,3,224,224]"], ["logits"]),
        (
            "hf:t5,num_layers=1,d_model=16,d_kv=8,num_heads=2,d_ff=16,vocab_size=50",
            [
                "input_ids:int64[1,64]",
                "attention_mask:int64[1,64]",
                "decoder_input_ids:int64[1,64]",
            ],
            ["logits", "encoder_last_hidden_state"],
        ),
        (
            "hf:gpt2,n_layer=1,n_embd=16,n_head=2,vocab_size=40",
            ["input_ids:int64[1,64]", "attention_mask:int64[1,64]"],
            ["logits"],
        ),
        (
            "hf:wav2vec2,num_hidden_layers=1,hidden_size=16,num_attention_heads=2,"
            "intermediate_size=16,num_conv_pos_embedding_groups=2",
            ["input_values:float32[1,16000]"],
            ["logits"],
        ),
    ],
)
def test_the_inputs_and_outputs_of_a_type(text: str, inputs: list | None, outputs: list) -> None:
    one = built(text)
    assert inputs is None or specs(one) == inputs
    arguments = []
    for spec in one.inputs:
        high = one.integer_ranges.get(spec.name, (0, 1))[1]
        arguments.append(torch.full(spec.shape, high - 1, dtype=getattr(torch, spec.dtype)))
    with torch.no_grad():
        answers = one.module(*arguments)  # the largest id has a row
    assert list(one.module.output_names) == outputs
    assert all(torch.isfinite(answer).all() for answer in answers)


@needs_transformers
def test_ids_stay_below_the_vocabulary_and_follow_the_users_length() -> None:
    one = built(TINY_BERT, "input_ids:int64[1,12]", "token_type_ids:int64[1,12]")
    assert specs(one)[1] == "attention_mask:int64[1,12]"
    assert one.integer_ranges == {
        "input_ids": (0, 99),
        "attention_mask": (1, 2),
        "token_type_ids": (0, 2),
    }


@needs_transformers
@pytest.mark.usefixtures("quick")
def test_a_tiny_bert_is_exported(out: Path) -> None:
    result = edgeport.export(TINY_BERT, output_dir=out, precision="w8a8", **REQUEST)
    assert result.artifact("capture").parity[0].value > 80
    assert [one["name"] for one in result.manifest["outputs"]] == [
        "last_hidden_state",
        "pooler_output",
    ]
    assert edgeport.export(f"{TINY_BERT},layer_norm_eps=0.1", output_dir=out, **REQUEST)
    assert manifest_of(out)["source"]["options"]["layer_norm_eps"] == 0.1


@needs_transformers
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("hf:bertt", "unknown hf model type 'bertt'. Did you mean 'bert'"),
        ("hf:bert,num_hidden_layer=2", "Did you mean 'num_hidden_layers'"),
        ("hf:bert,num_hidden_layers=two", "num_hidden_layers"),
        ("hf:bert,hidden_size=17", "17"),
        ("hf:bert,task=image-clasification", "Did you mean 'image-classification'"),
        ("hf:bert,task=image-classification", "bert has no image-classification; it has features"),
    ],
)
def test_wrong_types_and_settings(text: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        built(text)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@needs_transformers
def test_an_input_that_the_model_has_not() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'input_ids'"):
        built(TINY_BERT, "input_idz:int64[1,8]")


@needs_transformers
@pytest.mark.usefixtures("quick")
def test_an_input_of_the_wrong_rank_is_told_in_one_line(out: Path) -> None:
    for text, spec in (
        (TINY_VIT, "pixel_values:float32[3,32,48]"),
        (TINY_BERT, "input_ids:int64[64]"),
    ):
        with pytest.raises(InputError, match=r"the model fails on|raised") as caught:
            edgeport.export(text, output_dir=out, inputs=[spec], **REQUEST)
        assert "\n" not in str(caught.value)
    assert not any(out.parent.iterdir())


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A folder with the config and the safetensors of a tiny bert."""
    folder = tmp_path / "checkpoint"
    model = built(TINY_BERT).model
    assert model is not None
    model.save_pretrained(folder)
    return folder


@needs_transformers
def test_a_checkpoint_is_loaded_as_it_is(checkpoint: Path, tmp_path: Path) -> None:
    one, expected = built(f"hf:{checkpoint}"), built(TINY_BERT)
    assert not one.random and one.notes == ()
    states = [model.model.state_dict() for model in (one, expected)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[1])
    # Tensors in a pickle are read too, and nothing else from it.
    (checkpoint / "model.safetensors").unlink()
    torch.save(states[1], checkpoint / "pytorch_model.bin")
    again = built(f"hf:{checkpoint}").model.state_dict()
    assert all(torch.equal(again[key], states[1][key]) for key in again)
    # --weights goes in place of the folder's own.
    (checkpoint / "pytorch_model.bin").unlink()
    ones = {key: torch.ones_like(value) for key, value in states[1].items()}
    save_file(ones, tmp_path / "ones.safetensors")
    loaded = built(f"hf:{checkpoint}", weights=tmp_path / "ones.safetensors").model.state_dict()
    assert all((value == 1).all() for value in loaded.values())


class Hub(http.server.SimpleHTTPRequestHandler):
    """Serves a folder as the hub serves the files of OWNER/NAME; nothing else is there."""

    def log_message(self, *words: object) -> None:
        return

    def send_head(self):
        self.path = self.path.rpartition("/resolve/main/")[2] if "/resolve/" in self.path else "no"
        return super().send_head()

    def end_headers(self) -> None:
        if self.path != "no":
            self.send_header("ETag", f'"{hashlib.sha1(self.path.encode()).hexdigest()}"')
            self.send_header("X-Repo-Commit", "a" * 40)
        super().end_headers()


@needs_transformers
def test_a_checkpoint_of_the_hub_is_downloaded_when_asked(checkpoint: Path, tmp_path: Path) -> None:
    handler = functools.partial(Hub, directory=str(checkpoint))
    code = (
        "from edgeport.catalog import find_source\nfrom edgeport.sources import build\n"
        "one = build(find_source('hf:owner/tiny', pretrained=True), 0)\n"
        "print(one.random, sum(p.sum() for p in one.model.parameters()).item())"
    )
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        environment = command_environment(HF_ENDPOINT=endpoint, HF_HOME=str(tmp_path / "home"))
        environment.pop("HF_HUB_OFFLINE", None)
        words = [sys.executable, "-c", code]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120)
        server.shutdown()
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        total = sum(p.sum() for p in built(f"hf:{checkpoint}").model.parameters()).item()
    assert done.stdout.split() == ["False", str(total)]


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


@needs_transformers
def test_checkpoints_that_cannot_be_loaded(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(checkpoint.parent)
    state = built(TINY_BERT).model.state_dict()
    weights = checkpoint / "model.safetensors"

    def refused(words: str) -> None:
        with pytest.raises(InputError, match=words) as caught:
            built(f"hf:{checkpoint}")
        assert "\n" not in str(caught.value)

    short = {key: value for key, value in state.items() if key != "pooler.dense.bias"}
    save_file(short, weights)
    refused(r"lack pooler\.dense\.bias")
    save_file({**state, "pooler.dense.bias": torch.zeros(3)}, weights)
    refused(r"do not fit pooler\.dense\.bias")
    weights.write_bytes(b"no tensors")
    refused("checkpoint raised")
    weights.unlink()
    refused("checkpoint raised")
    torch.save(Bomb(), checkpoint / "pytorch_model.bin")
    refused("checkpoint raised")
    assert not (checkpoint.parent / "exploded").exists()
    config = json.loads((checkpoint / "config.json").read_text())
    code = {**config, "model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}
    (checkpoint / "config.json").write_text(json.dumps(code))
    (checkpoint / "mine.py").write_text("import os\nos.mkdir('exploded')\n")
    refused("checkpoint raised")
    assert not (checkpoint.parent / "exploded").exists()
    (checkpoint / "config.json").write_text("{")
    refused("checkpoint raised")


@needs_transformers
@pytest.mark.usefixtures("quick")
def test_a_checkpoints_files_belong_to_the_key(checkpoint: Path, out: Path) -> None:
    first = edgeport.export(f"hf:{checkpoint}", output_dir=out, **REQUEST)
    again = edgeport.export(f"hf:{checkpoint}", output_dir=out, **REQUEST)
    assert (first.cached_steps, again.cached_steps) == (0, first.steps)
    state = {key: value * 1.5 for key, value in built(TINY_BERT).model.state_dict().items()}
    save_file(state, checkpoint / "model.safetensors")
    assert edgeport.export(f"hf:{checkpoint}", output_dir=out, **REQUEST).cached_steps == 0
