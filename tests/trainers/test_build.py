"""llmmod.trainers.build: settings that a trainer refuses."""

from __future__ import annotations

import pytest
from answering import SHORT, toy_prompts

from llmmod.config.schema.training import PpoConf
from llmmod.errors import ConfigError
from llmmod.trainers.arguments import training_arguments
from llmmod.trainers.build import trainer_from

__all__ = ["toy_prompts"]
PPO = PpoConf(stage="ppo", trainer={"_target_": "llmmod.trainers.ppo.trainer.PpoTrainer"}, max_steps=2, **SHORT)


@pytest.fixture
def on_two_gpus(tiny_llama, tiny_tokenizer, toy_splits, toy_prompts, tmp_path):
    """A function: configuration -> its trainer in a process that sees two GPUs."""

    def make(conf):
        args = training_arguments(conf, output_dir=tmp_path, seed=1, smoke=False)
        args._n_gpu = 2  # as transformers counts two GPUs without a launcher
        train = toy_prompts[0] if conf.data_kind == "prompt" else toy_splits.train
        return trainer_from(conf, model=tiny_llama, args=args, train=train, evaluation=train, tokenizer=tiny_tokenizer)

    return make


@pytest.mark.parametrize("stage", ["sft", "ppo"])
def test_copies_of_the_model_in_threads_are_refused(on_two_gpus, sft_conf, stage):
    said = r"training: one process sees 2 GPUs.*torchrun --nproc-per-node=2 -m llmmod .*CUDA_VISIBLE_DEVICES=0"
    with pytest.raises(ConfigError, match=said):
        on_two_gpus(PPO if stage == "ppo" else sft_conf())


def test_one_model_that_is_spread_over_both_is_not(on_two_gpus, tiny_llama, sft_conf):
    tiny_llama.hf_device_map = {"model": 0, "lm_head": 1}
    assert on_two_gpus(sft_conf()).args.n_gpu == 1  # as transformers itself counts here
