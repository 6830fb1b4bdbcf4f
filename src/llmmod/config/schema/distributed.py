"""`distributed.*`: the number of processes and machines that train together, and the engine.

Fields of `fsdp` are those of `fsdp_config` of transformers.TrainingArguments (FSDP2), fields of `deepspeed` those of DeepSpeed's
configuration; https://www.deepspeed.ai/docs/config-json explains these.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from llmmod.config.schema.base import Table


@dataclass
class FsdpConf:
    """How torch's FSDP2 shards parameters, gradients and the optimizer's state over the processes."""

    CHOICES: ClassVar[Table] = {
        "auto_wrap_policy": ("TRANSFORMER_BASED_WRAP", "SIZE_BASED_WRAP", "NO_WRAP"),
        "state_dict_type": ("FULL_STATE_DICT", "SHARDED_STATE_DICT"),
    }

    # which modules are sharded separately: the model's layers (TRANSFORMER_BASED_WRAP), modules of `min_num_params`, or the whole model
    auto_wrap_policy: str = "TRANSFORMER_BASED_WRAP"
    transformer_layer_cls_to_wrap: list[str] | None = None  # the names of the layers' classes; None: those that the model itself names
    min_num_params: int = 0  # the minimum number of parameters of a module that SIZE_BASED_WRAP shards
    reshard_after_forward: bool = True  # free a layer's parameters after its forward pass, and gather them again for the backward pass
    cpu_offload: bool = False  # keep parameters and gradients in the machine's memory, and do the optimizer's step there
    # the weights of a checkpoint: one file as without FSDP (FULL_STATE_DICT), or a file for each process (SHARDED_STATE_DICT)
    state_dict_type: str = "FULL_STATE_DICT"
    cpu_ram_efficient_loading: bool = False  # read the weights only in the first process of a machine
    activation_checkpointing: bool = False  # compute activations again in the backward pass; instead of training.gradient_checkpointing


@dataclass
class DeepspeedConf:
    """How DeepSpeed's ZeRO shards the optimizer's state and gradients (stage 2), and parameters too (stage 3), over the processes."""

    CHOICES: ClassVar[Table] = {
        "offload_optimizer": ("none", "cpu", "nvme"),
        "offload_param": ("none", "cpu", "nvme"),
    }

    offload_optimizer: str = "none"  # where the optimizer's state is kept: on the accelerator (none), cpu or nvme
    offload_param: str = "none"  # where parameters are kept; stage 3
    nvme_path: str | None = None  # the directory on an NVMe disk for offloading
    pin_memory: bool = True  # offload to memory whose pages are locked, which copies faster
    overlap_comm: bool = True  # reduce gradients during the backward pass
    contiguous_gradients: bool = True  # copy gradients into one buffer when they are computed
    round_robin_gradients: bool = False  # divide the copying of gradients to the CPU among the processes; stage 2
    reduce_bucket_size: int | None = None  # elements that are reduced at once; None: 5e8, in stage 3 the square of the hidden size
    allgather_bucket_size: int = 200_000_000  # elements that are gathered at once; stage 2
    sub_group_size: int = 1_000_000_000  # elements that the optimizer updates at once; stage 3
    stage3_max_live_parameters: int = 1_000_000_000  # parameters that are on an accelerator at once
    stage3_max_reuse_distance: int = 1_000_000_000  # a parameter that is needed again within so many parameters is kept
    stage3_prefetch_bucket_size: int | None = None  # elements that are gathered ahead; None: 0.9 times the square of the hidden size
    stage3_param_persistence_threshold: int | None = None  # parameters with fewer elements aren't sharded; None: 10 times the hidden size
    stage3_gather_16bit_weights_on_model_save: bool = True  # save complete weights, so that any program can load them
    zero_hpz_partition_size: int = 1  # processes that share a secondary shard (ZeRO++); stage 3
    extra: dict[str, Any] = field(default_factory=dict)  # further keys of DeepSpeed's configuration, which override those above


@dataclass
class DistributedConf:
    """The processes of a run."""

    CHOICES: ClassVar[Table] = {"name": ("none", "ddp", "fsdp", "deepspeed_zero2", "deepspeed_zero3")}

    # the engine: `none`: one process; `ddp`: each process has the whole model; `fsdp` and `deepspeed_…`: the model is sharded
    name: str = "none"
    processes: int | None = None  # how many processes this machine starts; None: one for each of its GPUs
    nodes: int = 1  # how many machines take part; each of them gets the same command, with its own `rank`
    rank: int = 0  # which of the machines this is, from 0
    address: str | None = None  # the address to connect to: host:port of the machine of rank 0; None: one machine
    fsdp: FsdpConf = field(default_factory=FsdpConf)
    deepspeed: DeepspeedConf = field(default_factory=DeepspeedConf)
