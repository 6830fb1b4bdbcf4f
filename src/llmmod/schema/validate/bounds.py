"""Numbers outside their bounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from llmmod.errors import Problem
from llmmod.schema.validate.context import Context
from llmmod.schema.wording import shown


@dataclass(frozen=True)
class Bound:
    """A condition on a number, and how a message puts it."""

    text: str
    holds: Callable[[float], bool]


def at_least(least: float) -> Bound:
    """`least` or more."""
    return Bound(f"{least:g} or more", lambda x: x >= least)


ABOVE_0 = Bound("above 0", lambda x: x > 0)
FROM_0, FROM_1 = at_least(0), at_least(1)
FRACTION = Bound("0 or more and below 1", lambda x: 0 <= x < 1)
SHARE = Bound("above 0, up to 1", lambda x: 0 < x <= 1)
UP_TO_1 = Bound("from 0 to 1", lambda x: 0 <= x <= 1)
SEED = Bound("0 or more, below 2**32", lambda x: 0 <= x < 2**32)
NOT_0 = Bound("above 0 for the last layers, below 0 for the first", lambda x: x != 0)
STEPS_OR_NONE = Bound("1 or more, or -1 for as many as the epochs have", lambda x: x >= 1 or x == -1)
EXAMPLES = Bound("a fraction such as 0.1, or a whole number of examples", lambda x: 0 <= x < 1 or (x >= 1 and x == int(x)))
GROUP = Bound("a share of the sequence such as 0.25, or a whole number of tokens from 2", lambda x: 0 < x < 1 or (x >= 2 and x == int(x)))

# What the node is called -> field -> its bound; null is for the schema to allow.
BOUNDS: Mapping[str, Mapping[str, Bound]] = {
    "": {"seed": SEED},
    "training": {
        "learning_rate": ABOVE_0, "num_train_epochs": ABOVE_0, "max_steps": STEPS_OR_NONE, "warmup_steps": FROM_0,
        "per_device_train_batch_size": FROM_1, "per_device_eval_batch_size": FROM_1, "gradient_accumulation_steps": FROM_1,
        "eval_accumulation_steps": FROM_1, "weight_decay": FROM_0, "adam_beta1": FRACTION, "adam_beta2": FRACTION, "adam_epsilon": ABOVE_0,
        "max_grad_norm": FROM_0, "label_smoothing_factor": FRACTION, "neftune_noise_alpha": ABOVE_0, "logging_steps": ABOVE_0,
        "eval_steps": ABOVE_0, "save_steps": ABOVE_0, "eval_delay": FROM_0, "save_total_limit": FROM_1, "dataloader_num_workers": FROM_0,
        "dataloader_prefetch_factor": FROM_1, "torch_empty_cache_steps": FROM_1, "seed": SEED, "data_seed": SEED,
        "generation_max_length": FROM_1, "generation_num_beams": FROM_1, "beta": FROM_0,
        "label_smoothing": FRACTION, "ld_alpha": UP_TO_1, "discopop_tau": ABOVE_0, "ref_model_mixup_alpha": UP_TO_1,
        "ref_model_sync_steps": FROM_1, "precompute_ref_batch_size": FROM_1, "desirable_weight": FROM_0, "undesirable_weight": FROM_0,
        "center_rewards_coefficient": FROM_0,
        "num_ppo_epochs": FROM_1, "num_mini_batches": FROM_1, "max_completion_length": FROM_1, "generation_batch_size": FROM_1,
        "temperature": ABOVE_0, "top_p": SHARE, "top_k": FROM_0, "score_clip": ABOVE_0, "missing_eos_penalty": FROM_0, "kl_coef": FROM_0,
        "target": ABOVE_0, "horizon": ABOVE_0, "gamma": UP_TO_1, "lam": UP_TO_1, "cliprange": ABOVE_0, "cliprange_value": ABOVE_0,
        "vf_coef": FROM_0, "entropy_coef": FROM_0, "target_kl": ABOVE_0, "num_sample_answers": FROM_0,
        "num_generations": at_least(2), "num_generations_eval": FROM_1, "num_iterations": FROM_1, "steps_per_generation": FROM_1,
        "epsilon": ABOVE_0, "epsilon_high": ABOVE_0, "delta": ABOVE_0, "min_p": UP_TO_1, "repetition_penalty": ABOVE_0,
        "top_entropy_quantile": SHARE, "off_policy_mask_threshold": FROM_0, "sapo_temperature_neg": ABOVE_0,
        "sapo_temperature_pos": ABOVE_0,
    },
    "finetune": {
        "learning_rate": ABOVE_0, "r": FROM_1, "lora_alpha": FROM_1, "lora_dropout": FRACTION, "num_layers_trainable": NOT_0,
        "loraplus_lr_ratio": FROM_1,
    },
    "dataset": {
        "cutoff_len": FROM_1, "buffer_size": FROM_1, "max_samples": FROM_1, "val_size": EXAMPLES, "num_proc": FROM_1, "seed": SEED,
        "cache_max_gb": FROM_0,
    },
    "model": {"model_max_length": FROM_1, "shift_attn_group_size": GROUP},
    "model.rope_scaling": {"factor": FROM_1},
    "generation": {
        "temperature": ABOVE_0, "top_p": SHARE, "top_k": FROM_0, "min_p": UP_TO_1, "typical_p": SHARE, "top_h": SHARE,
        "repetition_penalty": ABOVE_0, "max_new_tokens": FROM_1, "min_new_tokens": FROM_0, "max_length": FROM_1, "min_length": FROM_0,
        "num_beams": FROM_1, "num_return_sequences": FROM_1, "no_repeat_ngram_size": FROM_0, "epsilon_cutoff": FRACTION,
        "eta_cutoff": FRACTION, "max_time": ABOVE_0,
    },
    "step": {"batch_size": FROM_1, "max_samples": FROM_1, "compare_with_base": FROM_0, "on_page": FROM_1, "in_terminal": FROM_0},
}  # fmt: skip


def check_bounds(context: Context) -> Iterator[Problem]:
    """A problem for each number outside its bounds."""
    for key, label, _ in context.labelled_nodes():
        node = context.get(key)
        for name, bound in BOUNDS.get(label, {}).items():
            value = node.get(name) if isinstance(node, dict) else None
            if isinstance(value, (int, float)) and not isinstance(value, bool) and not bound.holds(value):
                number = f"{value:g}" if isinstance(value, float) else shown(value)
                yield Problem(f"{key}.{name}" if key else name, f"found {number}", f"Allowed: {bound.text}")
