"""llmmod.trainers.arguments, with transformers' and trl's own argument classes."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
import trl

from llmmod.config.schema.base import Dtype
from llmmod.config.schema.generated.seq2seq import Seq2SeqTrainingArguments
from llmmod.config.schema.training import StageConf
from llmmod.errors import ConfigError
from llmmod.models.loading.quantization import _compute_dtype
from llmmod.trainers.arguments import training_arguments

on_a_cpu = pytest.mark.skipif(torch.accelerator.is_available(), reason="says what is decided for a CPU")


@dataclass
class PlainConf(Seq2SeqTrainingArguments, StageConf):
    """A stage that uses transformers' own arguments."""

    stage: str = "plain"
    logging_dirs: list[Any] = field(default_factory=list)


def arguments(conf, tmp_path, **changes):
    return training_arguments(conf, **{"output_dir": tmp_path, "seed": 7, "smoke": False, **changes})


def test_the_class_that_target_names_is_built_with_what_differs_from_its_defaults(sft_conf, tmp_path):
    args = arguments(sft_conf(learning_rate=3e-4, weight_decay=0.1), tmp_path)
    assert type(args) is trl.SFTConfig
    assert (args.learning_rate, args.weight_decay, args.output_dir, args.adam_beta1) == (3e-4, 0.1, str(tmp_path), 0.9)


def test_no_warning_of_a_library_about_arguments_that_nobody_set(sft_conf, tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        arguments(sft_conf(), tmp_path)
        arguments(sft_conf(gradient_checkpointing=True), tmp_path)
    assert [str(warning.message) for warning in caught] == []


@dataclass
class OtherDefaults(trl.SFTConfig):
    """A user's own class with two defaults that differ from the schema's."""

    weight_decay: float = 0.5
    learning_rate: float = 0.9


def test_what_the_configuration_shows_holds_whatever_the_class_s_defaults_are(sft_conf, tmp_path, monkeypatch):
    monkeypatch.setattr("llmmod.trainers.arguments.locate", lambda path: OtherDefaults)
    args = arguments(sft_conf(), tmp_path)
    assert type(args) is OtherDefaults
    assert (args.weight_decay, args.learning_rate) == (0.0, sft_conf().learning_rate)


@on_a_cpu
@pytest.mark.parametrize(
    ("changes", "bf16", "fp16"),
    [({}, False, False), ({"bf16": True}, True, False), ({"bf16": False}, False, False)],
    ids=["not set", "true", "false"],
)
def test_precision_on_a_cpu(sft_conf, tmp_path, changes, bf16, fp16):
    args = arguments(sft_conf(**changes), tmp_path)
    assert (args.use_cpu, args.bf16, args.fp16) == (True, bf16, fp16)


@pytest.mark.parametrize("name", ["fp16", "activation_offloading"])
def test_what_a_cpu_has_not_is_refused_and_a_rehearsal_goes_without_it(sft_conf, tmp_path, caplog, name):
    conf = sft_conf(use_cpu=True, **{name: True})
    assert refused(conf, tmp_path).startswith(f"training.{name}: true, but it has no effect on a CPU. Set training.")
    assert getattr(arguments(conf, tmp_path, smoke=True), name) is False
    assert f"training.{name} has no effect on a CPU: this rehearsal runs without it" in caplog.text


def test_the_run_s_seed_unless_training_has_its_own(sft_conf, tmp_path):
    assert arguments(sft_conf(), tmp_path).seed == 7
    assert arguments(sft_conf(seed=9), tmp_path).seed == 9


def test_what_llmmod_does_itself_is_switched_off_in_the_trainer(sft_conf, tmp_path):
    args = arguments(sft_conf(), tmp_path)
    assert args.dataset_kwargs == {"skip_prepare_dataset": True}
    assert (args.max_length, args.remove_unused_columns, args.disable_tqdm, args.report_to) == (None, False, True, [])


def test_gradient_checkpointing_reaches_the_new_name(sft_conf, tmp_path):
    assert arguments(sft_conf(gradient_checkpointing=True), tmp_path).activation_checkpointing is True
    assert arguments(sft_conf(gradient_checkpointing=False), tmp_path).activation_checkpointing is False


def test_smoke_takes_two_steps_on_small_batches(sft_conf, tmp_path):
    conf = sft_conf(per_device_train_batch_size=16, gradient_accumulation_steps=8, save_strategy="steps", eval_strategy="steps")
    args = arguments(conf, tmp_path, smoke=True)
    assert (args.max_steps, args.per_device_train_batch_size, args.gradient_accumulation_steps) == (2, 2, 2)
    assert (args.logging_steps, args.eval_steps, args.save_steps) == (1, 2, 2)


def test_smoke_refuses_numbers_of_the_run_that_do_not_go_together(sft_conf, tmp_path):
    saves = {"load_best_model_at_end": True, "save_strategy": "steps", "save_steps": 50, "eval_strategy": "steps", "eval_steps": 20}
    messages = set()
    for smoke in (False, True):
        with pytest.raises(ConfigError) as error:
            arguments(sft_conf(**saves), tmp_path, smoke=smoke)
        messages.add(str(error.value))
    (message,) = messages
    assert "round multiple" in message


def test_smoke_saves_at_the_first_step_where_that_is_wanted(sft_conf, tmp_path):
    args = arguments(sft_conf(save_strategy="steps", save_steps=1, eval_strategy="steps", eval_steps=1), tmp_path, smoke=True)
    assert (args.eval_steps, args.save_steps) == (1, 1)


def test_without_held_out_examples_nothing_is_evaluated(sft_conf, tmp_path):
    args = arguments(sft_conf(), tmp_path, has_eval=False)
    assert (args.eval_strategy, args.eval_on_start) == ("no", False)


def test_seq2seq_arguments_reach_a_class_that_has_none_without_an_error(sft_conf, tmp_path):
    args = arguments(sft_conf(predict_with_generate=True, generation_num_beams=2, sortish_sampler=True), tmp_path)
    assert args.train_sampling_strategy == "group_by_length"


def test_the_old_name_of_the_sampler_works_where_the_stage_sets_its_own_default(tmp_path):
    from llmmod.config.schema.training import KtoConf

    conf = KtoConf(stage="kto", train_sampling_strategy="random", sortish_sampler=True, report_to="none")
    assert arguments(conf, tmp_path).train_sampling_strategy == "group_by_length"


def test_transformers_own_arguments(tmp_path):
    args = arguments(PlainConf(learning_rate=1e-3), tmp_path)
    assert type(args) is transformers.Seq2SeqTrainingArguments
    assert args.learning_rate == 1e-3


def refused(conf, tmp_path):
    with pytest.raises(ConfigError) as caught:
        arguments(conf, tmp_path)
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"packing": True}, ["training.packing: ", "Set dataset.packing"]),
        ({"max_length": 77}, ["training.max_length: ", "Set dataset.cutoff_len"]),
        ({"output_dir": "x"}, ["training.output_dir: ", "Set output_dir, at the root"]),
        ({"load_best_model_at_end": True, "save_strategy": "steps"}, ["training.load_best_model_at_end: ", "strategy to match"]),
        ({"logging_steps": 2.5}, ["training.logging_steps: ", "must be an integer"]),
        ({"fp16": True, "bf16": True}, ["training.fp16: "]),
        ({"eval_strategy": "sometimes"}, ["training", "sometimes"]),
    ],
    ids=["packing", "max_length", "output_dir", "best model", "logging steps", "two precisions", "unknown strategy"],
)
def test_a_refusal_names_the_key(sft_conf, tmp_path, changes, words):
    message = refused(sft_conf(**changes), tmp_path)
    assert all(word in message for word in words), message


def test_all_arguments_that_belong_to_other_keys_are_reported_together(sft_conf, tmp_path):
    assert len(refused(sft_conf(packing=True, dataset_num_proc=2), tmp_path).splitlines()) == 2


def test_an_argument_that_the_class_has_not(tmp_path):
    message = refused(PlainConf(logging_dirs=[1]), tmp_path)
    assert "training.logging_dirs: not an argument of transformers.Seq2SeqTrainingArguments" in message


def test_an_accelerator_gets_batches_from_pinned_memory_without_waiting(sft_conf, tmp_path, monkeypatch):
    monkeypatch.setattr("llmmod.trainers.arguments._has_accelerator", lambda conf: not conf.use_cpu)
    args = arguments(sft_conf(), tmp_path)
    assert (args.dataloader_pin_memory, args.accelerator_config.non_blocking) == (True, True)
    own = arguments(sft_conf(accelerator_config={"non_blocking": False, "split_batches": True}), tmp_path)
    assert (own.accelerator_config.non_blocking, own.accelerator_config.split_batches) == (False, True)
    assert not arguments(sft_conf(use_cpu=True), tmp_path).accelerator_config.non_blocking


@pytest.mark.parametrize(("generation", "native"), [(7, False), (8, True)], ids=["T4", "A100"])
def test_a_gpu_that_emulates_bfloat16_is_not_asked_for_it(sft_conf, tmp_path, monkeypatch, generation, native):
    """torch reports bfloat16 as supported on a T4 and a V100, since such tensors can be created there."""
    monkeypatch.setattr("llmmod.trainers.arguments._has_accelerator", lambda conf: True)
    of_gpu = {"is_available": True, "current_device": 0, "get_device_properties": SimpleNamespace(major=generation)}
    for name, value in {**of_gpu, "_check_bf16_tensor_supported": True}.items():
        monkeypatch.setattr(torch.cuda, name, lambda *args, value=value: value)
    assert torch.cuda.is_bf16_supported()
    made = {}
    monkeypatch.setattr("llmmod.trainers.arguments._construct", lambda target, values: made.update(values))
    arguments(sft_conf(bf16=None), tmp_path)
    assert made["bf16"] is native
    assert _compute_dtype(Dtype.auto) == ("bfloat16" if native else "float32")
