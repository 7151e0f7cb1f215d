"""Creates transformers models: by type with random weights, or from a checkpoint."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgeport.catalog import Source
from edgeport.errors import EdgeportError, InputError, UnknownName
from edgeport.sources import Built
from edgeport.sources.hf_inputs import default_inputs, vocabulary
from edgeport.sources.torchvision_operators import import_torchvision

TASKS = {
    "features": "AutoModel",
    "image-classification": "AutoModelForImageClassification",
    "video-classification": "AutoModelForVideoClassification",
    "semantic-segmentation": "AutoModelForSemanticSegmentation",
    "object-detection": "AutoModelForObjectDetection",
    "depth-estimation": "AutoModelForDepthEstimation",
    "audio-classification": "AutoModelForAudioClassification",
    "ctc": "AutoModelForCTC",
    "masked-lm": "AutoModelForMaskedLM",
    "causal-lm": "AutoModelForCausalLM",
    "seq2seq-lm": "AutoModelForSeq2SeqLM",
    "speech-seq2seq": "AutoModelForSpeechSeq2Seq",
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
}
_DENSE = ("semantic-segmentation", "depth-estimation")
_TWO_SIDED = ("speech-seq2seq", "seq2seq-lm")
_HEADS = (
    "image-classification", "video-classification", *_DENSE, "object-detection", "ctc",
    "audio-classification",
)  # fmt: skip


class NamedModel(nn.Module):
    """Calls a transformers model by keyword, and returns the tensors among its outputs in order."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.names = model, names
        self.output_names: tuple[str, ...] = ()

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        result = self.model(**dict(zip(self.names, tensors, strict=True)), return_dict=True)
        found = {key: value for key, value in result.items() if isinstance(value, torch.Tensor)}
        self.output_names = tuple(found)
        return tuple(found.values())


def create_hf(source: Source) -> Built:
    """Returns the model, wrapped so that it takes its tensors in order.

    Raises UnknownName for a type, setting or task that transformers has not, and InputError where
    it refuses the settings or the checkpoint. Code of a checkpoint is never run.
    """
    import_torchvision()
    with _quiet():
        try:
            model, config, is_random = _create(source)
            inputs = default_inputs(model, config, source)
        except EdgeportError:
            raise
        except Exception as error:  # transformers checks its settings with many classes
            line = " ".join(str(error).split())[:300]
            raise InputError(f"{source.text} raised {type(error).__name__}: {line}") from error
    module = NamedModel(model, tuple(spec.name for spec in inputs))
    return Built(module, inputs, vocabulary(config, inputs), is_random, model=model)


def _create(source: Source) -> tuple[nn.Module, Any, bool]:
    from transformers import AutoConfig

    if source.path is not None or source.pretrained:
        place: Path | str = source.path or source.attribute
        config = AutoConfig.from_pretrained(
            str(place), local_files_only=not source.pretrained, trust_remote_code=False
        )
        if source.weights is None:
            return _load(place, config, source), config, False
        return _from_config(config, _architecture(config)), config, False
    config = _typed_config(source)
    return _from_config(config, _auto_class(config, source.options.get("task"))), config, True


def _typed_config(source: Source) -> Any:
    """Returns the config of a type with the user's settings, each of which it must have."""
    from transformers import CONFIG_MAPPING, AutoConfig

    if source.attribute not in CONFIG_MAPPING.keys():  # noqa: SIM118 (a mapping that imports)
        raise UnknownName("hf model type", source.attribute, CONFIG_MAPPING.keys())
    settings = {key: value for key, value in source.options.items() if key != "task"}
    config = AutoConfig.for_model(source.attribute)
    for key in settings:
        if not hasattr(config, key):
            known = [name for name in (*config.to_dict(), "num_labels") if name[0] != "_"]
            raise UnknownName(f"setting of {source.attribute}", key, ("task", *known))
    return AutoConfig.for_model(source.attribute, **settings)


def _from_config(config: Any, kind: Any) -> nn.Module:
    from transformers import PreTrainedModel

    config.use_cache = False  # the keys and values of earlier tokens are no outputs here
    if issubclass(kind, PreTrainedModel):
        return kind._from_config(config, dtype=torch.float32)  # type: ignore[no-any-return]
    return kind.from_config(  # type: ignore[no-any-return]
        config, dtype=torch.float32, trust_remote_code=False
    )


def _auto_class(config: Any, task: str | None) -> Any:
    """Returns the Auto class: the task's, else the one for which the type is known best.

    A text encoder gives features, a decoder the next token's logits, and a vision or audio model
    its head: a classifier, or where its config describes a decode head, the dense prediction.
    """
    import transformers

    if task is not None:
        if task not in TASKS:
            raise UnknownName("task", task, TASKS)
        kind = getattr(transformers, TASKS[task])
        if type(config) not in kind._model_mapping:
            known = [name for name in TASKS if _has(config, name)]
            raise InputError(f"{config.model_type} has no {task}; it has {', '.join(known)}")
        return kind
    wanted = next((name for name in _preferred(config) if _has(config, name)), "features")
    return getattr(transformers, TASKS[wanted])


def _preferred(config: Any) -> tuple[str, ...]:
    if hasattr(config, "text_config") and hasattr(config, "vision_config"):
        return ("features",)
    if config.is_encoder_decoder and any(_has(config, name) for name in _TWO_SIDED):
        return _TWO_SIDED
    dense = _DENSE if hasattr(config, "decoder_hidden_size") else ()
    text = ("features",) if _has(config, "masked-lm") else ("causal-lm",)
    return (*dense, *_HEADS, *text, "features")


def _has(config: Any, task: str) -> bool:
    import transformers

    return type(config) in getattr(transformers, TASKS[task])._model_mapping


def _architecture(config: Any) -> Any:
    """Returns the class that the checkpoint was saved from, if transformers has it."""
    import transformers

    names = config.architectures or ()
    return next(
        (found for name in names if (found := getattr(transformers, name, None))),
        None,
    ) or _auto_class(config, None)


def _load(place: Path | str, config: Any, source: Source) -> nn.Module:
    """Returns the checkpoint's model; safetensors are preferred, pickles hold tensors only.

    Raises InputError naming the first weights that are missing or of another shape.
    """
    config.use_cache = False
    model, info = _architecture(config).from_pretrained(
        str(place),
        config=config,
        dtype=torch.float32,
        local_files_only=not source.pretrained,
        trust_remote_code=False,
        weights_only=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # told below, in one line
    )
    _check_loaded(source.text, info)
    return model  # type: ignore[no-any-return]


def _check_loaded(text: str, info: Mapping[str, Any]) -> None:
    missing = sorted(info["missing_keys"])
    mismatched = sorted(key if isinstance(key, str) else key[0] for key in info["mismatched_keys"])
    for problem, keys in (("lack", missing), ("do not fit", mismatched)):
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise InputError(f"{text}: its weights {problem} {', '.join(keys[:3])}{more}")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps transformers' remarks and progress bars off stderr."""
    from transformers.utils import logging as transformers_logging

    logger = logging.getLogger("transformers")
    level, bars = logger.level, transformers_logging.is_progress_bar_enabled()
    logger.setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        logger.setLevel(level)
        if bars:
            transformers_logging.enable_progress_bar()
