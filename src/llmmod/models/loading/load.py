"""Models from checkpoints: a hub id, a local directory, a folder of an installed package, or a GGUF file.

`load_model` has the arguments and the result of `transformers.AutoModelForCausalLM.from_pretrained`, with three differences: errors of
checkpoints are explained, GGUF files become models that can be trained and saved, and the layouts of 2023 are converted while they are
read.
"""

from __future__ import annotations

import errno
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from huggingface_hub.errors import HfHubHTTPError, StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, modeling_utils

from llmmod.code_arguments import code_problem, disable_code_prompt
from llmmod.errors import ConfigError, Problem, did_you_mean
from llmmod.files.checkpoint import PATH_KEY, Checkpoint, check_model_directory, check_reachable, find_checkpoint, hub_problem
from llmmod.models.attention.rope import use_per_sequence_rope
from llmmod.models.families.layouts import family_of
from llmmod.models.families.native import check_layout, load_original, native_config, warn_beyond_trained_length
from llmmod.models.loading.quantization import keep_differentiable, plain_linears
from llmmod.models.loading.structure import set_name
from llmmod.models.loading.weight_files import mmap_release, model_from_gguf, quick_gguf_reader
from llmmod.upstream import replaced, require_upstream

require_upstream(__name__)

log = logging.getLogger(__name__)

# The arguments of from_pretrained about the place of files and access to them.
WHERE = (
    "revision", "cache_dir", "token", "local_files_only", "proxies", "force_download", "subfolder", "trust_remote_code", "code_revision",
)  # fmt: skip
# A configuration has fields with these names too, but they must be passed to from_pretrained.
_NOT_FIELDS = frozenset({*WHERE, "dtype", "torch_dtype", "attn_implementation", "experts_implementation", "quantization_config"})
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def load_model(pretrained_model_name_or_path: str, **arguments: Any) -> Any:
    """A causal language model with the weights of a checkpoint, in evaluation mode.

    Args:
        pretrained_model_name_or_path: a hub id, a directory, a GGUF file, or `pkg://package/folder` for an installed package.
        arguments: as in `AutoModelForCausalLM.from_pretrained`. `gguf_file` names a file in that directory; fields of the model's
            configuration are set before the model is built.

    Returns:
        A transformers.PreTrainedModel. From GGUF: a plain one, with weights unpacked to `dtype` (default float32).

    Raises:
        ConfigError: the checkpoint doesn't exist, can't be read, or lacks weights of the model.
    """
    checkpoint = find_checkpoint(pretrained_model_name_or_path, gguf_file=arguments.pop("gguf_file", None))
    check_model_directory(checkpoint)
    with mmap_release(), quick_gguf_reader(), _sizes_checked(pretrained_model_name_or_path):
        where = {name: arguments[name] for name in WHERE if name in arguments}
        raw, config = read_config(checkpoint, **where), arguments.pop("config", None)
        if is_reward_checkpoint(raw):  # with tied weights its trunk would silently load as a language model
            found = f"'{pretrained_model_name_or_path}' is a reward model, which gives scores and doesn't generate text"
            raise ConfigError(Problem(PATH_KEY, found, do="Give a language model, or use this one as a reward: stage=rm"))
        if config is None:
            config = _config(checkpoint, raw, {}, where)
        for name in [name for name in arguments if name not in _NOT_FIELDS and _is_field(config, name)]:
            setattr(config, name, arguments.pop(name))
        with explain_loading_errors(checkpoint, arguments):
            model, info = _from_pretrained(checkpoint, raw, config=config, **arguments | {"output_loading_info": True})
    if missing := sorted(info["missing_keys"]):  # transformers initialises them randomly, with a warning
        found = f"'{pretrained_model_name_or_path}' lacks {len(missing)} weights of {type(model).__name__}"
        raise ConfigError(Problem(PATH_KEY, f"{found}, among them {missing[0]}"))
    keep_differentiable(model)
    use_per_sequence_rope(model)
    report_remote_code(model, pretrained_model_name_or_path, trust_remote_code=bool(where.get("trust_remote_code")))
    set_name(model, pretrained_model_name_or_path)
    warn_beyond_trained_length(model)
    return (model, info) if arguments.get("output_loading_info") else model


def report_remote_code(loaded: Any, path: str, *, trust_remote_code: bool) -> None:
    """Log the effect of `model.trust_remote_code`: whether code of a checkpoint was run.

    Args:
        loaded: a model or tokenizer.
        path: of its checkpoint.
        trust_remote_code: as set.
    """
    kind = type(loaded)
    if kind.__module__.startswith("transformers_modules."):
        log.warning(
            "model.trust_remote_code=true: Python code of '%s' was run with all your rights, and defines %s. llmmod can't check what that "
            "computes, and to load the saved model the code must be run too.",
            path, kind.__name__,
        )  # fmt: skip
    elif trust_remote_code:
        log.info("model.trust_remote_code=true: the code of '%s' wasn't needed for %s.", path, kind.__name__)


def load_config(checkpoint: Checkpoint, fields: dict[str, Any], **where: Any) -> Any:
    """A checkpoint's configuration, of the model's configuration class, with some fields set.

    Args:
        checkpoint: as found.
        fields: name -> value, of the configuration (`model.config.*`).
        where: `WHERE`.

    Raises:
        ConfigError: it can't be read, its model can't be built here, or it doesn't have a field.
    """
    return _config(checkpoint, read_config(checkpoint, **where), fields, where)


def read_config(checkpoint: Checkpoint, **where: Any) -> dict[str, Any]:
    """The contents of a checkpoint's config.json, or its equivalent from a GGUF file.

    Raises:
        ConfigError: it can't be read, or its model can't be built here.
    """
    if not checkpoint.local:
        check_reachable(checkpoint.path, filename=checkpoint.gguf_file or "config.json", **where)
    source = {"gguf_file": checkpoint.gguf_file} if checkpoint.gguf_file else {}
    files = {name: value for name, value in where.items() if name not in ("trust_remote_code", "code_revision")}
    with explain_loading_errors(checkpoint, where), quick_gguf_reader():
        raw: dict[str, Any] = PreTrainedConfig.get_config_dict(checkpoint.path, **source, **files)[0]
        check_layout(raw, path=checkpoint.path, trust_remote_code=bool(where.get("trust_remote_code")))
        return raw


def _config(checkpoint: Checkpoint, raw: dict[str, Any], fields: dict[str, Any], where: dict[str, Any]) -> Any:
    family = family_of(raw, path=checkpoint.path)
    with explain_loading_errors(checkpoint, where), quick_gguf_reader():
        if family is not None:
            config = native_config(family, raw)
            raw = config.to_dict()
        elif checkpoint.gguf_file:  # AutoConfig.from_pretrained would read the file again: a second of CPU
            config = AutoConfig.for_model(**raw)
        else:
            config = AutoConfig.from_pretrained(checkpoint.path, **where)
        unknown = [name for name in fields if not _is_field(config, name)]
        if unknown:
            known = [name for name in config.to_dict() if not name.startswith("_")]
            raise ConfigError(Problem(f"model.config.{name}", "no such field", did_you_mean(name, known)) for name in unknown)
        return type(config).from_dict({**raw, **fields}) if fields else config


@contextmanager
def explain_loading_errors(checkpoint: Checkpoint, arguments: dict[str, Any], key: str = PATH_KEY) -> Iterator[None]:
    """A context in which libraries' errors of an unreadable checkpoint become a ConfigError.

    Other errors aren't changed: out of memory, a full disk, a defect.
    """
    disable_code_prompt()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The `proxies` argument is ignored")  # `set_proxies` set them
            yield
    except ConfigError:
        raise
    except (OSError, ValueError, ImportError, SafetensorError, StrictDataclassError, RuntimeError, TypeError) as error:
        problem = _problem(error, checkpoint, arguments, key)
        if problem is None:
            raise
        raise ConfigError(problem) from error


def _from_pretrained(checkpoint: Checkpoint, raw: dict[str, Any], **arguments: Any) -> Any:
    family = family_of(raw, path=checkpoint.path)
    if checkpoint.gguf_file is None:
        own_linears = plain_linears(arguments["config"].model_type) if arguments.get("quantization_config") else nullcontext()
        with own_linears:
            if family is not None:
                return load_original(checkpoint.path, family, **arguments)
            return AutoModelForCausalLM.from_pretrained(checkpoint.path, **arguments)
    return model_from_gguf(checkpoint.path, checkpoint.gguf_file, **arguments)


def _is_field(config: Any, name: str) -> bool:
    return name in config.to_dict() or name in config.attribute_map


def is_reward_checkpoint(raw: Mapping[str, Any]) -> bool:
    """Whether a config.json is a reward model's, not a language model's."""
    return any(str(name).endswith("ForSequenceClassification") for name in raw.get("architectures") or ())


@contextmanager
def _sizes_checked(path: str) -> Iterator[None]:
    """A context in which weights of wrong sizes raise a ConfigError, instead of tables and tracebacks of transformers (5.23)."""
    report = modeling_utils.log_state_dict_report

    def check(*args: Any, loading_info: Any, ignore_mismatched_sizes: bool, **named: Any) -> None:
        others = [] if ignore_mismatched_sizes else [key for key, *_ in loading_info.mismatched_keys]
        if others := sorted({*others, *loading_info.conversion_errors}):
            found = f"{len(others)} weights of '{path}' have other sizes than in its config.json, among them"
            raise ConfigError(Problem(PATH_KEY, f"{found} {others[0]}"))
        report(*args, loading_info=loading_info, ignore_mismatched_sizes=ignore_mismatched_sizes, **named)

    with replaced(modeling_utils, "log_state_dict_report", check):
        yield


def _problem(error: Exception, checkpoint: Checkpoint, arguments: dict[str, Any], key: str) -> Problem | None:
    text = " ".join(str(error).split())
    hub = next((cause for cause in _causes(error) if isinstance(cause, HfHubHTTPError)), None)
    if hub is not None:
        return hub_problem(hub, checkpoint.path, revision=arguments.get("revision"), key=key)
    if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in text or getattr(error, "errno", None) in _DISK_FULL:
        return None
    if refused := code_problem(error, key, checkpoint.path):
        return refused
    if "attn_implementation" in arguments and "attention" in text.lower():
        return Problem("model.attn_implementation", f"'{arguments['attn_implementation']}' can't be used: {text[:200]}")
    if isinstance(error, TypeError):
        named = text.rpartition("unexpected keyword argument ")[2].strip("'\"")
        return Problem(f"model.kwargs.{named}", "not an argument of from_pretrained") if "unexpected keyword" in text else None
    if isinstance(error, RuntimeError) and "size" not in text and "state_dict" not in text:
        return None
    return Problem(key, f"'{checkpoint.path}' can't be loaded: {text[:300]}")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
