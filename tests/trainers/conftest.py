"""The toy tasks of tests/support."""

from __future__ import annotations

from preferences import dpo_conf, dpo_trainer, kto_conf, kto_trainer, rm_conf, rm_trainer, tiny_reward, toy_judged, toy_pairs
from toy import lora_conf, one_thread, sft_conf, toy_session, toy_splits, toy_trainer

__all__ = [
    "dpo_conf",
    "dpo_trainer",
    "kto_conf",
    "kto_trainer",
    "lora_conf",
    "one_thread",
    "rm_conf",
    "rm_trainer",
    "sft_conf",
    "tiny_reward",
    "toy_judged",
    "toy_pairs",
    "toy_session",
    "toy_splits",
    "toy_trainer",
]
