"""Validation of overrides that compose: the full messages, and that valid overrides pass."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time

import pytest

from llmmod.config.compose import Composed, compose_config
from llmmod.config.validate import compose_validated, validated
from llmmod.config.validate.checks import context_of, validate
from llmmod.config.validate.training import check_contradictions
from llmmod.errors import ConfigError

ALLOWED = "Allowed: components of llmmod, torch, transformers, trl, peft, datasets, accelerate."
NO_ANSWERS = "predict doesn't generate answers in this stage, so it can't measure or compare them. Leave it out."
STEPS = "train, evaluate, predict, export, chat, preview, compare, plan"
REFUSED = {
    # keys
    "key by +": ("+training.learning_ratee=1", "training.learning_ratee: no such field. Did you mean 'learning_rate'?"),
    "key by ++": ("++finetune.lora_alfa=1", "finetune.lora_alfa: no such field. Did you mean 'lora_alpha'?"),
    "key by + deep down": ("+model.quantization.bit=4", "model.quantization.bit: no such field. Did you mean 'bits'?"),
    "key by + of another option": (
        "finetune=full +finetune.r=3",
        "finetune.r: no such field with finetune=full. It belongs to finetune=lora, qlora.",
    ),
    "key by + at the root": (
        "+foo=3",
        "foo: no such key or group. Allowed: auto_resume, dataset, distributed, experiment, finetune, generation, hub, model, output_dir, "
        "pipeline, quantization, render, replay, reuse, seed, smoke, stage, step, steps, sweep, tokenizer, training.",
    ),
    "key by + of a step": (
        "+steps.train.batch=3",
        "steps.train.batch: no such field. Allowed: dataset, finetune, model, render, training.",
    ),
    # types
    "type of a field that takes several": (
        "training.report_to=3",
        "training.report_to: found 3. Expected a text, or a list, written [a,b], or null.",
    ),
    "type of our own": ("dataset.format=[a]", "dataset.format: found ['a']. Expected a text, or keys with values, written {a: 1}."),
    "type in a list": ("render.prompt=[3]", "render.prompt: found [3]. Expected a list, written [a,b]."),
    "key of a class's fields": (
        "+finetune.monteclora_config.num_sample=2",
        "finetune.monteclora_config.num_sample: no such field. Did you mean 'num_samples'?",
    ),
    # choices
    "choice, few": (
        "training.eval_strategy=step",
        "training.eval_strategy: found 'step'. Did you mean 'steps'? Allowed: no, steps, epoch.",
    ),
    "choice, many": (
        "training.optim=adamw",
        "training.optim: found 'adamw'. Did you mean 'adamw_torch', 'adamw_torch_fused' or 'adamw_torch_xla'?",
    ),
    "choice with a variable part": (
        "finetune.init_lora_weights=pisa",
        "finetune.init_lora_weights: found 'pisa'. Did you mean 'pissa'? Allowed: gaussian, eva, olora, pissa, "
        "pissa_niter_[number of iters], corda, loftq, orthogonal, mica.",
    ),
    "bits": ("finetune=qlora model.quantization.bits=3", "model.quantization.bits: found 3. Allowed: 4, 8."),
    "quantization type": (
        "finetune=qlora model.quantization.type=nf5",
        "model.quantization.type: found 'nf5'. Did you mean 'nf4'? Allowed: nf4, fp4.",
    ),
    "attention": (
        "model.attn_implementation=sdp",
        "model.attn_implementation: found 'sdp'. Did you mean 'sdpa'? Allowed: eager, sdpa, flash_attention_2, "
        "flash_attention_3, flex_attention.",
    ),
    "format": ("dataset.format=alpacca", None),
    "layout": ("steps.export.layout=x", "steps.export.layout: found 'x'. Allowed: native, original."),
    "rope": (
        "model.rope_scaling.type=linaer",
        "model.rope_scaling.type: found 'linaer'. Did you mean 'linear'? Allowed: linear, dynamic, yarn.",
    ),
    "size without a unit": (
        "steps.export.max_shard_size=5",
        "steps.export.max_shard_size: 5 has no unit. Allowed: a number with KB, MB, GB or TB. Write 5GB.",
    ),
    "size that is none": (
        "steps.export.max_shard_size=big",
        "steps.export.max_shard_size: found 'big'. Allowed: a number with KB, MB, GB or TB.",
    ),
    # bounds
    "learning rate": ("training.learning_rate=-1", "training.learning_rate: found -1. Allowed: above 0."),
    "epochs": ("training.num_train_epochs=0", "training.num_train_epochs: found 0. Allowed: above 0."),
    "steps": ("training.max_steps=0", "training.max_steps: found 0. Allowed: 1 or more, or -1 for all steps of the epochs."),
    "batch": ("training.per_device_train_batch_size=0", "training.per_device_train_batch_size: found 0. Allowed: 1 or more."),
    "cutoff": ("dataset.cutoff_len=0", "dataset.cutoff_len: found 0. Allowed: 1 or more."),
    "dropout": ("finetune.lora_dropout=1", "finetune.lora_dropout: found 1. Allowed: 0 or more and below 1."),
    "rank": ("finetune.r=0", "finetune.r: found 0. Allowed: 1 or more."),
    "layers": (
        "finetune=freeze finetune.num_layers_trainable=0",
        "finetune.num_layers_trainable: found 0. Allowed: above 0 for the last layers, below 0 for the first.",
    ),
    "validation size": (
        "dataset.val_files=null dataset.val_size=1.5",
        "dataset.val_size: found 1.5. Allowed: a fraction such as 0.1, or a whole number of examples.",
    ),
    "temperature": ("generation=sample generation.temperature=0", "generation.temperature: found 0. Allowed: above 0."),
    "top_p": ("generation=sample generation.top_p=1.5", "generation.top_p: found 1.5. Allowed: above 0, up to 1."),
    "new tokens": ("generation.max_new_tokens=0", "generation.max_new_tokens: found 0. Allowed: 1 or more."),
    "seed": ("seed=-1", "seed: found -1. Allowed: 0 or more, below 2**32."),
    # targets
    "target": ("dataset._target_=os.system", f"dataset._target_: a configuration must not name 'os.system'. {ALLOWED}"),
    "target in a free mapping": (
        "+training.callbacks.e={_target_:mine.Callback}",
        f"training.callbacks.e._target_: a configuration must not name 'mine.Callback'. {ALLOWED} "
        "If you trust that module, add --allow mine, or set LLMMOD_ALLOW=mine.",
    ),
    "target that isn't there": (
        "+steps.predict.metrics.x._target_=llmmod.data.formats.alpac.read",
        "steps.predict.metrics.x._target_: the module llmmod.data.formats.alpac does not exist. Did you mean 'alpaca'?",
    ),
    "argument of a target": (
        "+training.callbacks.e={_target_:transformers.EarlyStoppingCallback,early_stopping_patienc:3}",
        "training.callbacks.e.early_stopping_patienc: not an argument of transformers.EarlyStoppingCallback. Did you mean "
        "'early_stopping_patience'?",
    ),
    # pipeline
    "no steps": ("pipeline=[]", f"pipeline: has no steps. Allowed: {STEPS}."),
    "nothing to reuse": (
        "reuse=true",
        "reuse: true, but only a run of several training steps can reuse results of earlier runs. Leave it out.",
    ),
    "no such step": ("pipeline=[train,trian]", f"pipeline: 'trian' is not a step. Did you mean 'train'? Allowed: {STEPS}."),
    "a step twice": (
        "pipeline=[train,train]",
        "pipeline: 'train' appears 2 times. Give the second a name of its own: +step@steps.train_2=train.",
    ),
    "nothing to chat with": (
        "pipeline=[chat] model.pretrained_model_name_or_path=null",
        "model.pretrained_model_name_or_path: is not set, and chat needs a model. Give a hub id or a directory.",
    ),
    "a reward model to chat with": (
        "stage=rm pipeline=[train,chat]",
        "pipeline: has chat, but the model of training.stage=rm gives scores and can't generate text. Leave chat out; predict writes the "
        "scores.",
    ),
    "nobody to chat with": (
        "pipeline=[chat] model.weights=random",
        "model.weights: random, but a training step doesn't come before chat, so chat doesn't have a trained model. Put train before it, "
        "or set "
        "weights=pretrained.",
    ),
    "nothing to measure": (
        "dataset.val_files=null",
        "dataset.val_size: examples are not held out, so evaluate can't measure anything. "
        "Set dataset.val_size (0.1: a tenth of them), dataset.val_split or dataset.val_files, or leave evaluate out of the pipeline.",
    ),
    "a step without a schema": (
        "+steps.mine._target_=llmmod.steps.train.Train pipeline=[train,mine]",
        "steps.mine: doesn't start from a schema. Start from a step's: +step@steps.mine=train steps.mine._target_=….",
    ),
    # contradictions
    "qlora on whole weights": (
        "finetune=qlora model.quantization.bits=null",
        "model.quantization.bits: null, but finetune=qlora trains adapters on quantized weights. Allowed: 4, 8. "
        "For weights that are not quantized, use finetune=lora.",
    ),
    "full on quantized weights": (
        "finetune=full model.quantization.bits=4",
        "model.quantization.bits: 4 with finetune=full, but quantized weights can't be trained. Use finetune=qlora, or set it to null.",
    ),
    "two ways to hold out": (
        "dataset.val_size=0.1",
        "dataset.val_size: set, but dataset.val_files='pkg://llmmod.demo/llmmod_qa_heldout.jsonl' holds out examples too. "
        "Keep one of them: val_files=null.",
    ),
    "code of a checkpoint's": (
        "+model.kwargs.trust_remote_code=true",
        "model.kwargs.trust_remote_code: has a key of its own. Set model.trust_remote_code.",
    ),
    "the hub's": ("+tokenizer.kwargs.cache_dir=x", "tokenizer.kwargs.cache_dir: has a key of its own. Set hub.cache_dir."),
    "positions scaled by nobody knows how much": (
        "model.rope_scaling.type=yarn",
        "model.rope_scaling.factor: not set, and model.rope_scaling.type is yarn. Set it, or model.model_max_length, from which it is "
        "computed.",
    ),
    "shifted attention of another kind": (
        "model.shift_attn=true model.attn_implementation=eager",
        "model.attn_implementation: eager with model.shift_attn=true. Allowed: sdpa, null.",
    ),
    "no adapter to resume": (
        "finetune.resume_adapter=true",
        "finetune.resume_adapter: true, but finetune.adapters is empty. Name it: 'finetune.adapters=[path]'.",
    ),
    "two precisions": (
        "training.bf16=true training.fp16=true",
        "training.fp16: true, but training.bf16 is true as well. Keep one of them.",
    ),
    "best of nothing": (
        "training.load_best_model_at_end=true training.eval_strategy=no",
        "training.load_best_model_at_end: true with training.eval_strategy=no. Set eval_strategy to steps or epoch.",
    ),
    "best of what isn't saved": (
        "training.load_best_model_at_end=true training.eval_strategy=epoch training.save_strategy=steps",
        "training.load_best_model_at_end: true, but training.save_strategy=steps is not training.eval_strategy=epoch. Set "
        "save_strategy=epoch.",
    ),
    "tokens": (
        "generation.min_new_tokens=9 generation.max_new_tokens=8",
        "generation.min_new_tokens: 9 is more than generation.max_new_tokens=8.",
    ),
    # keys that nothing reads
    "step not in the pipeline": (
        "steps.chat.system=x",
        "steps.chat.system: not read, since chat is not in the pipeline [train,evaluate,predict,export]. Add it, or leave the key out.",
    ),
    "unread part": (
        "pipeline=[chat] dataset.cutoff_len=33",
        "dataset.cutoff_len: the steps of the pipeline [chat] don't read it. Leave it out.",
    ),
    "training of answers": (
        "pipeline=[predict] training.per_device_eval_batch_size=2",
        "training.per_device_eval_batch_size: the steps of the pipeline [predict] don't read it. Leave it out.",
    ),
    "unread field": ("pipeline=[chat] finetune.r=3", "finetune.r: the steps of the pipeline [chat] don't read it. Leave it out."),
    "sampling": ("generation.temperature=0.5", "generation.temperature: not read with generation.do_sample=false. Use generation=sample."),
    "length that the dataset sets": (
        "training.max_length=512",
        "training.max_length: llmmod does this itself, before the trainer. Set dataset.cutoff_len.",
    ),
    "uploading": ("training.push_to_hub=true", "training.push_to_hub: a run doesn't upload anything. Export, and upload with hf upload."),
    "saving": ("training.save_steps=5 training.save_strategy=no", "training.save_steps: only read with save_strategy=steps."),
    "epochs and steps": (
        "training.max_steps=3 training.num_train_epochs=2",
        "training.num_train_epochs: not read, since max_steps is set. Set one of them.",
    ),
    "evaluating on nothing": (
        "pipeline=[train] dataset.val_files=null training.eval_strategy=epoch",
        "training.eval_strategy: examples to evaluate on are not held out. Set dataset.val_size.",
    ),
    "quantization that is off": (
        "model.quantization.double_quant=false",
        "model.quantization.double_quant: not read, since bits is null. Set bits to 4 or 8.",
    ),
    "buffer": ("dataset.buffer_size=3", "dataset.buffer_size: not read with streaming=false."),
    "limit without a cache": ("dataset.cache=false dataset.cache_max_gb=3", "dataset.cache_max_gb: not read with cache=false."),
    "processes of a stream": (
        "dataset.streaming=true dataset.num_proc=2 training.max_steps=3",
        "dataset.num_proc: not read with streaming=true.",
    ),
    "architecture": (
        "model.architecture={model_type:llama}",
        "model.architecture.model_type: only a rehearsal reads it. Set smoke=true, or model.config.",
    ),
    "groups without shifted attention": (
        "model.shift_attn_group_size=64",
        "model.shift_attn_group_size: not read with shift_attn=false. Set model.shift_attn=true.",
    ),
    "metric of documents": ("stage=pt steps.predict.metrics.bleu=null", f"steps.predict.metrics.bleu: {NO_ANSWERS}"),
    "metric of scores": (
        "stage=rm +steps.predict.metrics.mine._target_=llmmod.metrics.Bleu",
        f"steps.predict.metrics.mine._target_: {NO_ANSWERS}",
    ),
    "comparison of documents": ("stage=pt steps.predict.compare_with_base=2", f"steps.predict.compare_with_base: {NO_ANSWERS}"),
    "comparison of scores": (
        "stage=rm pipeline=[evaluate] training.predict_with_generate=true steps.predict.compare_with_base=2",
        f"steps.predict.compare_with_base: {NO_ANSWERS}",
    ),
    "factor without scaling": (
        "model.rope_scaling.factor=2",
        "model.rope_scaling.factor: not read, since type is null. Set model.rope_scaling.type.",
    ),
    "render by chat template": (
        "render=auto render.strip=true",
        "render.strip: render=auto uses the chat template. Choose another render.",
    ),
    "template of a written render": ("render.template=x", "render.template: only render=auto reads it. Set render=auto."),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(told, name):
    overrides, message = REFUSED[name]
    lines = told(*shlex.split(overrides))
    assert len(lines) == 1, lines
    if message is not None:
        assert lines == [message]


def test_a_stream_can_be_packed(told):
    assert told("dataset.streaming=true", "dataset.packing=true", "training.max_steps=3") == []
    for smoke in ("false", "true"):
        (line,) = told("dataset.streaming=true", f"smoke={smoke}")
        assert line.startswith("training.max_steps: not set, but the length of a streamed dataset is unknown")


def test_shifted_attention_over_packed_examples():
    context, _ = context_of(compose_config(["model.shift_attn=true", "dataset.packing=true"]))
    assert [str(problem) for problem in check_contradictions(context)] == [
        "dataset.packing: true with model.shift_attn=true, which groups the tokens of a row and ignores the examples in it. "
        "Set one of them to false."
    ]


RIGHT = """
smoke=true
training.learning_rate=1e-3 training.max_steps=4 finetune.r=16 finetune.lora_dropout=0.1
finetune.init_lora_weights=pissa_niter_4
finetune.target_modules=[q_proj,v_proj]
model.shift_attn=true
model.shift_attn=true model.shift_attn_group_size=512 model.attn_implementation=sdpa
model.rope_scaling.type=linear model.rope_scaling.factor=2
model.rope_scaling.type=dynamic model.model_max_length=16384
finetune=qlora
finetune=qlora quantization@model.quantization=int8
finetune=freeze finetune.num_layers_trainable=-2
generation=sample generation.temperature=0.7 generation.top_p=0.9
steps.export.max_shard_size=500MB
dataset.val_files=null dataset.val_size=0.1
dataset.val_files=null dataset.val_size=20 dataset.seed=3
pipeline=[chat]
pipeline=[train,chat] model.weights=random
pipeline=[preview] steps.preview.max_samples=3
pipeline=[preview] training.num_train_epochs=5 finetune.r=16 dataset.val_files=null
pipeline=[predict] steps.predict.compare_with_base=2 steps.predict.metrics.bleu=null
stage=ppo steps.predict.compare_with_base=2 steps.predict.metrics.bleu=null
stage=rm steps.predict.compare_with_base=0 steps.predict.max_samples=3
stage=rm training.predict._target_=llmmod.steps.export.Export steps.predict.compare_with_base=2
experiment=rlhf steps.predict.compare_with_base=2
pipeline=[export]
pipeline=[chat] steps.chat.history=false generation.max_new_tokens=5 training.use_cpu=true
pipeline=[train] dataset.val_files=null
training.eval_strategy=steps training.eval_steps=5
training.report_to=[wandb,tensorboard]
pipeline=[predict] training.predict._target_=llmmod.steps.export.Export training.per_device_eval_batch_size=2
training.lr_scheduler_kwargs={num_cycles:2} training.lr_scheduler_type=cosine_with_restarts
+training.callbacks.e={_target_:transformers.EarlyStoppingCallback,early_stopping_patience:3}
+model.kwargs.low_cpu_mem_usage=true
training.trainer._target_=trl.SFTTrainer
hub.offline=true
'output_dir=${hydra:runtime.cwd}/x'
model=llama model.size=13b
model.pretrained_model_name_or_path=org/name
finetune.adapters=[org/adapter] finetune.resume_adapter=true
dataset.path=org/name dataset.data_files=null dataset.val_files=null dataset.val_split=test
dataset.format={_target_:llmmod.data.formats.alpaca.read}
""".strip().splitlines()


@pytest.mark.parametrize("overrides", RIGHT)
def test_right(told, overrides):
    assert told(*shlex.split(overrides)) == []


def test_problems_of_every_kind_are_reported_at_once(told):
    overrides = "+training.learning_ratee=1 training.learning_rate=-1 training.optim=adamm finetune=full model.quantization.bits=4 "
    overrides += "pipeline=[train,chatt] training.max_length=3 dataset.data_files=nope.json dataset.val_files=null"
    keys = [line.split(":")[0] for line in told(*shlex.split(overrides))]
    assert keys == [
        "training.learning_ratee",
        "training.optim",
        "training.learning_rate",
        "pipeline",
        "model.quantization.bits",
        "training.max_length",
        "dataset.data_files",
    ]


def test_overrides_that_hydra_refuses_are_reported_with_other_problems():
    with pytest.raises(ConfigError) as error:
        compose_validated(["model=chatglm22", "training.learning_ratee=1", "finetune.r=0", "smoke=maybe"])
    assert [p.key for p in error.value.problems] == ["model=chatglm22", "training.learning_ratee", "smoke", "finetune.r"]


def test_a_file_of_the_users_own_is_checked_too(tmp_path):
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\ntraining:\n  learning_rate: -1\nmodel:\n  kwargs: {x: {_target_: os.system}}\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError) as error:
        validated(compose_config(["experiment=mine"], config_dir=str(tmp_path)))
    assert [p.key for p in error.value.problems] == ["training.learning_rate", "model.kwargs.x._target_"]


def test_an_option_without_its_schema(tmp_path):
    (tmp_path / "finetune").mkdir()
    (tmp_path / "finetune" / "mine.yaml").write_text("name: mine\nr: 8\n")
    with pytest.raises(ConfigError) as error:
        validated(compose_config(["finetune=mine", "training.learning_rate=1e-4"], config_dir=str(tmp_path)))
    message = "finetune: the option mine doesn't start from a schema. Begin its defaults with '- /schema/finetune/lora@_here_'."
    assert message in str(error.value).splitlines()


def test_hydra_s_own_node_is_checked():
    evil = ["+hydra.callbacks.x={_target_: os.system, command: id}", "+hydra.job.env_set.LLMMOD_ALLOW=os"]
    with pytest.raises(ConfigError) as error:
        validated(compose_config(evil, with_hydra=True))
    assert [p.key for p in error.value.problems] == ["hydra.callbacks.x._target_", "hydra.job.env_set.LLMMOD_ALLOW"]


def test_what_hydra_builds_is_judged_by_what_it_is(tmp_path, monkeypatch):
    text = "import pathlib\nfrom hydra.experimental.callback import Callback\nclass Mine(Callback): ...\n"
    (tmp_path / "mine_beside.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("LLMMOD_ALLOW", "mine_beside")
    assert validate(compose_config(["+hydra.callbacks.x={_target_: mine_beside.Mine}"], with_hydra=True)) == []
    problems = validate(compose_config(["+hydra.callbacks.x={_target_: mine_beside.pathlib.Path.write_text}"], with_hydra=True))
    assert [p.key for p in problems] == ["hydra.callbacks.x._target_"]
    assert problems[0].found == "'mine_beside.pathlib.Path.write_text' leads out of mine_beside, to pathlib"


def test_a_prefix_that_can_not_be_allowed(told, monkeypatch):
    monkeypatch.setenv("LLMMOD_ALLOW", "os")
    assert told() == ["LLMMOD_ALLOW=os: os runs code, so it can't be allowed."]


def test_a_class_of_the_users_own_may_read_keys_of_its_own(told, tmp_path, monkeypatch):
    monkeypatch.setenv("LLMMOD_ALLOW", "mine")
    (tmp_path / "mine.py").write_text("def load(conf, **rest): ...\n")
    assert told("dataset._target_=mine.load", "+dataset.shards=3") == []


def test_a_step_s_own_part_is_checked_as_the_root_s(told):
    lines = told("+dataset@steps.evaluate.dataset=llmmod_qa", "steps.evaluate.dataset.cutoff_len=0", "steps.evaluate.dataset.buffer_size=3")
    assert lines == [
        "steps.evaluate.dataset.cutoff_len: found 0. Allowed: 1 or more.",
        "steps.evaluate.dataset.buffer_size: not read with streaming=false.",
    ]


def test_without_a_record_of_overrides_nothing_is_called_unread():
    config = compose_config(["training.max_length=3"]).config
    assert validate(Composed(config=config, hydra=None, overrides=[])) == []


def test_time():
    composed = compose_config([], with_hydra=True)
    validate(composed)
    began = time.process_time()
    validate(composed)
    assert time.process_time() - began < 0.1


def test_no_heavy_import_and_none_of_the_checks_where_no_override_can_be_applied():
    code = """
import sys
from llmmod.config.validate import compose_validated
from llmmod.errors import ConfigError
try:
    compose_validated(["training.learning_ratee=1e-4"])
except ConfigError as error:
    assert "learning_rate" in str(error)
assert "llmmod.config.validate.checks" not in sys.modules
from llmmod.config.compose import compose_config
from llmmod.config.validate.checks import context_of, validate
from llmmod.config.validate.training import check_contradictions
callback = "+training.callbacks.e={_target_:transformers.EarlyStoppingCallback,x:3}"
assert len(validate(compose_config(["dataset.packing=true", "model.attn_implementation=flex_attention"]))) == 1
assert validate(compose_config([callback, "model.pretrained_model_name_or_path=/no/such", "training.resume_from_checkpoint=/no/such"]))
heavy = {"torch", "transformers", "datasets", "trl", "peft", "accelerate", "numpy"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True)
