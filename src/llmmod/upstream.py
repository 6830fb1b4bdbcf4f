"""Our dependence on other libraries: their versions, and every private name of theirs that we patch, override or read.

A release may remove a private name, so `PRIVATE_NAMES` lists all of them: where we use it, and for what a public name is missing.
A module calls `require_upstream(__name__)` before it uses its names. pyproject.toml caps each of these libraries below its next minor
version, and a test finds the uses in the source and compares.

The versions are read without imports; for the names, only modules are imported that the caller uses anyway.
"""

from __future__ import annotations

import importlib
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from llmmod.errors import LlmmodError, Problem

# The libraries that affect a run's results; run.json, model cards and `llmmod --version` list these.
MAIN = ("llmmod", "torch", "transformers", "peft", "trl")
_MORE = (
    "accelerate", "datasets", "tokenizers", "safetensors", "huggingface_hub", "bitsandbytes", "gguf", "hydra-core", "omegaconf", "numpy",
)  # fmt: skip

# For each library whose private names we use: the versions with which the tests pass.
KNOWN_TO_WORK = {
    "hydra-core": "1.3",
    "omegaconf": "2.3",
    "torch": "2.13",
    "transformers": "5.23",
    "trl": "1.16",
    "peft": "0.21",
    "accelerate": "1.15",
    "datasets": "5.2",
    "huggingface_hub": "2.4",
    "bitsandbytes": "0.50",
    "gguf": "0.19",
    "submitit": "1.5",
}


class Use(NamedTuple):
    """Names of one owner that one of our modules uses.

    Args:
        where: our module, without `llmmod.`.
        package: the library, as pip knows it.
        owner: `module` or `module:Class`.
        names: its private names, or public ones that we replace, separated by spaces; a class's include those of its instances.
        why: what llmmod does with them.
    """

    where: str
    package: str
    owner: str
    names: str
    why: str


# Where an instance gets its attributes.
_MADE_BY = ("__init__", "__post_init__")

# fmt: off
PRIVATE_NAMES = (
    Use("app", "hydra-core", "hydra._internal.utils", "get_args_parser", "reads Hydra's own flags before Hydra does"),
    Use("config.register", "hydra-core", "hydra._internal.config_loader_impl",
        "ConfigLoaderImpl", "composes faster, sets a mapping where there is null, and lists the groups that a user can choose from"),
    Use("config.register", "hydra-core", "hydra._internal.config_loader_impl:ConfigLoaderImpl",
        "_apply_overrides_to_config get_group_options", "composes faster, and sets a mapping where there is null"),
    Use("config.register", "hydra-core", "hydra._internal.config_loader_impl:ConfigLoaderImpl",
        "list_groups", "lists the groups that a user can choose from"),
    Use("config.register", "hydra-core", "hydra._internal.config_repository", "ConfigRepository", "reads a file once for all jobs"),
    Use("config.register", "hydra-core", "hydra._internal.config_repository:ConfigRepository", "load_config", "composes faster"),
    Use("config.register", "hydra-core", "hydra._internal.defaults_list", "_create_interpolation_map", "composes faster"),
    Use("config.register", "hydra-core", "hydra._internal.hydra", "Hydra", "writes what help shows and no more"),
    Use("config.register", "hydra-core", "hydra._internal.hydra:Hydra", "get_help", "writes what help shows and no more"),
    Use("config.overrides", "hydra-core", "hydra._internal.config_loader_impl",
        "ConfigLoaderImpl get_overrides_dirname", "applies overrides one by one, so that every mistake is found"),
    Use("config.overrides", "hydra-core", "hydra._internal.config_loader_impl:ConfigLoaderImpl",
        "_apply_overrides_to_config", "applies overrides one by one, so that every mistake is found"),
    Use("config.overrides", "hydra-core", "hydra._internal.utils", "create_config_search_path", "composes without Hydra's global state"),
    Use("sweep.plan", "hydra-core", "hydra._internal.core_plugins.basic_sweeper",
        "BasicSweeper", "knows the jobs of a sweep before it begins"),
    Use("sweep.launch", "submitit", "submitit.core.core:Job", "results", "waits for every job of a sweep, also after one that died"),
    Use("config.register", "omegaconf", "omegaconf._utils",
        "get_structured_config_data get_type_of is_structured_config", "makes a dataclass's node at half the time"),
    Use("config.register", "omegaconf", "omegaconf._utils", "get_yaml_loader", "reads YAML with libyaml"),
    Use("config.register", "omegaconf", "omegaconf.base:Box",
        "_re_parent _content _parent _flags_cache", "merges without walking the whole tree"),
    Use("config.register", "omegaconf", "omegaconf:DictConfig",
        "_content _get_flag _get_node _is_none _metadata _set_parent _set_value_impl _validate_set",
        "makes a dataclass's node at half the time"),
    Use("config.wording", "omegaconf", "omegaconf:DictConfig",
        "_is_none _is_missing _is_interpolation", "finds each dataclass of a configuration"),
    Use("config.wording", "omegaconf", "omegaconf:ListConfig", "_iter_ex", "finds each dataclass of a configuration"),
    Use("models.adapters.precision", "torch", "torch.nn:Module",
        "_parameters _forward_hooks _forward_hooks_always_called _forward_pre_hooks _forward_pre_hooks_with_kwargs",
        "holds trained weights in float32, computes in the model's type, and removes its hooks again"),
    Use("models.attention.shifted", "torch", "torch.nn.functional", "scaled_dot_product_attention", "shifts Falcon's own attention"),
    Use("models.loading.structure", "torch", "torch.nn:Module", "_forward_hooks _forward_pre_hooks", "leaves layers with hooks alone"),
    Use("models.loading.quantization", "torch", "torch", "_C", "packs matrices into 4 bit a part at a time"),
    Use("steps.plan.model", "torch", "torch._subclasses.fake_tensor",
        "FakeTensor FakeTensorMode in_kernel_invocation_manager", "runs a training without values"),
    Use("steps.plan.model", "torch", "torch._ops:OpOverload", "_schema", "asks which operations share memory"),
    Use("steps.plan.memory", "torch", "torch.utils._python_dispatch", "TorchDispatchMode", "counts the memory of each operation"),
    Use("steps.plan.memory", "torch", "torch", "_C", "asks whether a backward pass is running"),
    Use("steps.plan.memory", "torch", "torch._C", "_current_graph_task_id", "asks whether a backward pass is running"),
    Use("steps.plan.memory", "torch", "torch.nn:Module", "_apply", "converts modules whose tensors have no values"),
    Use("models.matmul", "torch", "torch.library:Library", "_destroy", "takes its matrix products back"),
    Use("models.matmul", "torch", "torch.ops:mkldnn", "_linear_pointwise", "multiplies matrices on AMD processors"),
    Use("trainers.efficient", "torch", "torch.nn:Module", "_call_impl _compiled_call_impl", "compiles layers for training alone"),
    Use("trainers.ppo.trainer", "torch", "torch.nn:Module", "_modules", "removes the value head from the model"),
    Use("code_arguments", "transformers", "transformers.dynamic_module_utils",
        "TIME_OUT_REMOTE_CODE", "refuses a checkpoint's code without a question on the terminal"),
    Use("models.adapters.merge", "transformers", "transformers:PreTrainedModel",
        "_keep_in_fp32_modules_strict", "merges into weights that stay in float32"),
    Use("steps.plan.fit", "transformers", "transformers:PreTrainedConfig",
        "_attn_implementation", "tells whether attention keeps its scores"),
    Use("models.attention.shifted", "transformers", "transformers:PreTrainedConfig",
        "_attn_implementation", "chooses the attention of a model"),
    Use("models.attention.shifted", "transformers", "transformers:PreTrainedModel",
        "_supports_attention_backend", "shifts attention where it can be replaced"),
    Use("models.attention.varlen", "transformers", "transformers:PreTrainedConfig",
        "_attn_implementation", "switches a model's attention for one packed batch"),
    Use("models.families.baichuan", "transformers", "transformers:PreTrainedModel",
        "_supports_flash_attn _supports_flex_attn", "allows only attention that takes ALiBi's biases"),
    Use("models.families.convert", "transformers", "transformers.conversion_mapping",
        "_checkpoint_conversion_mapping_cache USER_REGISTERED_MAPPINGS", "reads a family's checkpoints into a native class"),
    Use("models.families.convert", "transformers", "transformers:PreTrainedModel",
        "_keys_to_ignore_on_load_unexpected", "reads a family's checkpoints into a native class"),
    Use("models.families.convert", "transformers", "transformers.core_model_loading:revert_weight_conversion",
        "_weight_conversions", "saves a model in its family's layout"),
    Use("models.families.convert", "transformers", "transformers:PreTrainedConfig",
        "_name_or_path", "finds the files that a model came from"),
    Use("models.families.native", "transformers", "transformers:PreTrainedModel", "_from_config", "makes a model of random weights"),
    Use("models.families.native", "transformers", "transformers.core_model_loading:revert_weight_conversion",
        "_weight_conversions", "saves a model of a family in the native layout"),
    Use("models.generation.generate", "transformers", "transformers:PreTrainedConfig",
        "_attn_implementation", "generates with a cache in place where attention allows it"),
    Use("models.generation.slots", "transformers", "transformers:PreTrainedConfig",
        "_attn_implementation", "generates with a cache in place where attention allows it"),
    Use("models.generation.settings", "transformers", "transformers:GenerationConfig",
        "_from_model_config", "keeps chosen generation settings when a model is saved"),
    Use("models.loading.build", "transformers", "transformers:PreTrainedConfig",
        "_attn_implementation", "chooses the attention of a random model"),
    Use("models.loading.weight_files", "transformers", "transformers.core_model_loading",
        "_materialize_copy", "gives pages of a weight file back as it is read"),
    Use("models.loading.load", "transformers", "transformers.modeling_utils",
        "log_state_dict_report", "names weights that don't fit in one message"),
    Use("models.loading.structure", "transformers", "transformers:PreTrainedConfig",
        "_attn_implementation _name_or_path", "quantizes a model that is loaded already"),
    Use("models.packing", "transformers", "transformers:PreTrainedConfig",
        "_attn_implementation", "chooses how packed sequences are kept apart, and tests whether they are"),
    Use("models.packing", "transformers", "transformers:PreTrainedModel",
        "_from_config", "tests whether a model keeps packed sequences apart"),
    Use("models.tokenizers.originals", "transformers", "transformers:PythonBackend",
        "_added_tokens_encoder", "spells special tokens in the text of some tokens"),
    Use("render.chat_template", "transformers", "transformers.utils.chat_template_utils",
        "_compile_jinja_template", "compiles a chat template as transformers does"),
    Use("steps.train", "transformers", "transformers.trainer:Trainer",
        "_save_checkpoint", "writes a checkpoint when training is interrupted"),
    Use("trainers.base", "transformers", "transformers.trainer:Trainer",
        "_determine_best_metric _get_dataloader _get_train_sampler _get_eval_sampler _get_grad_norm _issue_warnings_after_load _save "
        "_track_num_input_tokens",
        "trains in one order for a seed, checks each gradient, finds the best model by any metric, and saves what is needed alone"),
    Use("trainers.online.base", "transformers", "transformers.trainer:Trainer", "_save", "saves the trained adapter without a reward's"),
    Use("trainers.checkpoints", "transformers", "transformers.trainer:Trainer",
        "_finalize_training _get_dataloader _get_output_dir _load_best_model _load_optimizer_and_scheduler _load_rng_state "
        "_maybe_log_save_evaluate _push_from_checkpoint _run_epoch _save_checkpoint _save_rng_state",
        "resumes from a checkpoint with the same results as an uninterrupted run"),
    Use("trainers.online.grpo", "transformers", "transformers.trainer:Trainer",
        "_get_train_sampler _track_num_input_tokens", "takes batches of prompts"),
    Use("trainers.ppo.rollout", "transformers", "transformers.trainer:Trainer", "_prepare_inputs", "moves a batch to the model's device"),
    Use("trainers.ppo.trainer", "transformers", "transformers.trainer:Trainer",
        "_get_dataloader _get_train_sampler _load_best_model _load_from_checkpoint _save _train_batch_size",
        "draws rollouts, and saves and loads the value head with the policy"),
    Use("trainers.preference.base", "transformers", "transformers.trainer:Trainer",
        "_get_dataloader _prepare_inputs", "reads the reference's log-probabilities from the data"),
    Use("trainers.preference.trainers", "transformers", "transformers.trainer:Trainer",
        "_get_num_items_in_batch", "weighs the pairs or examples of a step alike"),
    Use("trainers.rm", "transformers", "transformers.trainer:Trainer",
        "_get_num_items_in_batch _prepare_inputs", "weighs the pairs of a step alike"),
    Use("trainers.sft", "transformers", "transformers.trainer:Trainer",
        "_get_num_items_in_batch _prepare_inputs", "counts a step's labels, and evaluates each sequence of a packed row"),
    Use("trainers.base", "trl", "trl.trainer.base_trainer:_BaseTrainer", "_send_telemetry", "sends no telemetry"),
    Use("trainers.checkpoints", "trl", "trl:SFTTrainer", "_metrics _total_train_tokens", "keeps the metrics since the last logged line"),
    Use("trainers.efficient", "trl", "trl.trainer.utils",
        "_ChunkedLogProbFunction _use_triton", "computes the head for labelled tokens alone on a CPU"),
    Use("trainers.online.grpo", "trl", "trl:GRPOTrainer",
        "_buffered_inputs _calculate_rewards _entropy_bonus_enabled _entropy_window_stats _generate_and_score_completions "
        "_generate_single_turn _get_per_token_logps_and_entropies _last_world_entropy _metrics _prepare_inputs _step _tokenize_prompts",
        "generates and scores completions as ppo does"),
    Use("trainers.preference.base", "trl", "trl:DPOTrainer",
        "_metrics _precompute_ref_logps _prepare_dataset", "trains on pairs that are tokenized already"),
    Use("trainers.preference.base", "trl", "trl:KTOTrainer",
        "_metrics _precompute_ref_logps _prepare_dataset", "trains on pairs that are tokenized already"),
    Use("trainers.preference.trainers", "trl", "trl:DPOTrainer", "_metrics", "logs the means of all pairs"),
    Use("trainers.preference.trainers", "trl", "trl:KTOTrainer", "_metrics", "logs the means of all examples"),
    Use("trainers.rm", "trl", "trl:RewardTrainer", "_metrics _prepare_dataset", "trains on pairs that are tokenized already"),
    Use("models.adapters.base_changing_init", "peft", "peft.tuners.lora.layer:LoraLayer", "loftq_init", "initializes LoftQ on any device"),
    Use("trainers.efficient", "peft", "peft.tuners.lora.layer:Linear", "forward", "adds an adapter's output in place"),
    Use("trainers.preference.base", "accelerate", "accelerate:Accelerator", "_models", "trains without a second model as the reference"),
    Use("trainers.distributed", "accelerate", "accelerate.state:PartialState", "_shared_state", "joins processes by FSDP on a CPU"),
    Use("trainers.distributed", "accelerate", "accelerate.state:AcceleratorState", "_reset_state", "leaves an engine after a training"),
    Use("data.sources.open", "datasets", "datasets.config", "HF_HUB_OFFLINE", "reads a data set of the hub from the cache"),
    Use("data.sources.open", "huggingface_hub", "huggingface_hub.constants",
        "HF_HUB_OFFLINE", "reads a data set of the hub from the cache"),
    Use("models.loading.quantization", "bitsandbytes", "bitsandbytes.backends.cpu.ops",
        "lib", "unpacks 4-bit weights on a CPU in the runs that they were packed in"),
    Use("models.loading.weight_files", "gguf", "gguf",
        "GGUFReader get_tensor_name_map dequantize", "reads a GGUF file once: 3 s of CPU instead of 15 s"),
    Use("models.loading.weight_files", "gguf", "gguf:GGUFReader", "_get_field_parts", "reads a GGUF file once: 3 s of CPU instead of 15 s"),
)
# fmt: on


class UpstreamError(LlmmodError):
    """An installed library doesn't have a private name that we use; the message says which versions have it."""


def require_upstream(module: str, *packages: str) -> None:
    """Check that the installed libraries have the private names that a module of ours uses, or all modules of a package of ours.

    Args:
        module: as its `__name__`.
        packages: only names of these libraries.

    Raises:
        UpstreamError: with a line for each name that is missing.
    """
    user = module.removeprefix("llmmod.")
    uses = [use for use in PRIVATE_NAMES if f"{use.where}.".startswith(f"{user}.") and (not packages or use.package in packages)]
    if problems := [problem for use in uses for problem in missing_names(use)]:
        raise UpstreamError("\n".join(map(str, problems)))


def missing_names(use: Use) -> Iterator[Problem]:
    """A problem for each of the names that the installed library doesn't have."""
    place, _, of = use.owner.partition(":")
    names = use.names.split()
    with suppress(ImportError, AttributeError):
        owner = importlib.import_module(place)
        names = [name for name in names if not _has(getattr(owner, of) if of else owner, name)]
    major, minor = KNOWN_TO_WORK[use.package].split(".")
    for name in names:
        found = f"not in {use.package} {installed(use.package)}, which is installed. llmmod {use.why} with it"
        do = f"Install one of them: pip install '{use.package}>={major}.{minor},<{major}.{int(minor) + 1}'"
        yield Problem(".".join(filter(None, (place, of, name))), found, f"Known to work: {use.package} {major}.{minor}.*", do)


def _has(owner: Any, name: str) -> bool:
    """Whether a module, class or function has a name: a class also if its instances get it, a function if its code uses it."""
    classes = [vars(above) for above in getattr(owner, "__mro__", ())]
    declared = [part.get("__annotations__", {}) for part in classes]
    code = [getattr(made, "__code__", None) for made in (owner, *(part.get(name) for part in classes for name in _MADE_BY))]
    return hasattr(owner, name) or any(name in names for names in declared) or any(name in c.co_names + c.co_consts for c in code if c)


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """A context in which a name of a module or class has another value; at its end a class gets its own back, or none."""
    own = vars(owner)
    before = own.get(name, own)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is own:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


@cache
def installed(package: str) -> str | None:
    """The version of an installed package; None if it is not installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def processor() -> str:
    """The processor's name, if the kernel reports it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def report() -> str:
    """The lines that a bug report needs: all libraries, Python, and the system."""
    lines = [f"{package} {installed(package) or 'not installed'}" for package in (*MAIN, *_MORE)]
    return "\n".join([*lines, f"Python {platform.python_version()}", f"{platform.system()} {platform.release()} {platform.machine()}"])
