"""The rules of every training: values that contradict each other, its best model, and the checkpoint to resume from.

The best model has a metric that selects it, and times at which it is measured. A metric that the evaluations don't measure is refused with
the nearest names. The measures of a user's own metric or trainer are unknown before it runs; such names are checked later: metrics of
answers before the model is loaded, others at the first evaluation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llmmod.config.schema.steps import ChatConf
from llmmod.config.schema.training import ANSWERS, CONTINUES
from llmmod.config.step_parts import Context
from llmmod.config.validate.model import problems_of
from llmmod.config.validate.pipeline import holds_out
from llmmod.config.validate.values import CHOICES
from llmmod.config.wording import shown
from llmmod.distributed import rank, started
from llmmod.errors import Problem, did_you_mean
from llmmod.instantiate import import_own

_HUB = {"cache_dir": "hub.cache_dir", "token": "hub.token", "proxies": "hub.proxies", "local_files_only": "hub.offline"}
_CODE = {"revision": "model.revision", "trust_remote_code": "model.trust_remote_code"}
# Arguments of from_pretrained with a key of their own, whose values are passed to from_pretrained too.
OWN_KEYS: Mapping[str, Mapping[str, str]] = {
    "model": _HUB | _CODE | {
        "dtype": "model.dtype", "torch_dtype": "model.dtype", "device_map": "model.device_map", "gguf_file": "model.gguf_file",
        "attn_implementation": "model.attn_implementation", "quantization_config": "model.quantization.bits",
        "load_in_4bit": "model.quantization.bits=4", "load_in_8bit": "model.quantization.bits=8",
    },
    "tokenizer": _HUB | _CODE | {"gguf_file": "model.gguf_file"},
}  # fmt: skip
_GENERATED = "predict_"
_PREFERENCES = (
    "loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "logps/rejected", "logits/chosen", "logits/rejected",
    "entropy",
)  # fmt: skip
# Trainer -> the metrics of its evaluation; a name that ends in a slash stands for all names that begin with it.
MEASURED: Mapping[str, tuple[str, ...]] = {
    "llmmod.trainers.sft.SftTrainer": ("loss", "perplexity", "token_accuracy"),
    "llmmod.trainers.rm.RmTrainer": ("loss", "accuracy", "margin", "chosen_reward", "rejected_reward"),
    "llmmod.trainers.preference.trainers.DpoTrainer": (*_PREFERENCES, "rewards/accuracies", "mean_token_accuracy"),
    "llmmod.trainers.preference.trainers.KtoTrainer": (*_PREFERENCES, "kl"),
    "llmmod.trainers.ppo.trainer.PpoTrainer": ("reward", "reward_se", "score", "kl", "answer_length", "terminated", "rewards/"),
    "llmmod.trainers.online.grpo.GrpoTrainer": ("reward", "reward_se", "kl", "entropy", "rewards/", "completions/"),
}  # fmt: skip
# Metric of answers -> what it measures.
OF_ANSWERS: Mapping[str, tuple[str, ...]] = {
    "llmmod.metrics.Rouge": ("rouge-1", "rouge-2", "rouge-l"),
    "llmmod.metrics.Bleu": ("bleu-4",),
    "llmmod.metrics.Exact": ("exact",),
    "llmmod.metrics.Length": ("words",),
    "llmmod.metrics.Repetition": ("repeated-4-grams",),
}
_BY_TIME = "%Y-%m-%d_%H-%M-%S"  # the name of a run's directory if output_dir isn't set, as in conf/config.yaml
_SHARDED = ("fsdp", "deepspeed_zero3")  # engines that shard the parameters
_BY_PLATEAU = ("reduce_lr_on_plateau", "greedy")  # schedules that use a metric of every evaluation


def check_contradictions(context: Context) -> Iterator[Problem]:
    """A problem for each contradiction."""
    for step in context.steps:
        if context.trains(step):
            yield from _quantized(context, step)
            yield from _shifted_attention(context, step)
        elif context.step_type(step) is ChatConf:
            yield from _scores_only(context, step)
    for part, own in OWN_KEYS.items():
        for place in context.places(part):
            given = context.get(f"{place}.kwargs") or {}
            yield from (Problem(f"{place}.kwargs.{name}", "has a key of its own", do=f"Set {own[name]}") for name in given if name in own)
    for place in context.places("model"):
        yield from _rope(context, place)
    for place in context.places("finetune"):
        yield from _adapters(context, place)
    for place in context.places("training"):
        yield from _training(context, place)
    for place in context.places("dataset"):
        yield from _dataset(context, place)
    yield from _generation(context)


def _quantized(context: Context, step: str) -> Iterator[Problem]:
    model, finetune = context.part(step, "model"), context.part(step, "finetune")
    bits, name = context.get(f"{model}.quantization.bits"), context.get(f"{finetune}.name")
    if name == "qlora" and bits is None:
        found = "null, but finetune=qlora trains adapters on quantized weights"
        yield Problem(f"{model}.quantization.bits", found, "Allowed: 4, 8", "For weights that are not quantized, use finetune=lora")
    elif bits is not None and name in ("full", "freeze"):
        found = f"{bits} with finetune={name}, but quantized weights can't be trained"
        yield Problem(f"{model}.quantization.bits", found, do="Use finetune=qlora, or set it to null")


def _scores_only(context: Context, step: str) -> Iterator[Problem]:
    training = context.part(step, "training")
    if context.get(f"{training}.head") == "reward":
        found = f"has {step}, but the model of {training}.stage={context.get(f'{training}.stage')} gives scores and can't generate text"
        yield Problem("pipeline", found, do=f"Leave {step} out; predict writes the scores")


def _shifted_attention(context: Context, step: str) -> Iterator[Problem]:
    model, dataset = context.part(step, "model"), context.part(step, "dataset")
    attention = context.get(f"{model}.attn_implementation")
    if not context.get(f"{model}.shift_attn"):
        return
    if context.get(f"{dataset}.packing"):
        found = f"true with {model}.shift_attn=true, which groups the tokens of a row and ignores the examples in it"
        yield Problem(f"{dataset}.packing", found, do="Set one of them to false")
    if attention not in (None, "sdpa"):
        found = f"{attention} with {model}.shift_attn=true"
        yield Problem(f"{model}.attn_implementation", found, "Allowed: sdpa, null")


def _rope(context: Context, place: str) -> Iterator[Problem]:
    scaling = context.get(f"{place}.rope_scaling") or {}
    known = scaling.get("type") in CHOICES["model.rope_scaling", "type"]
    if known and not scaling.get("factor") and not context.get(f"{place}.model_max_length"):
        do = f"Set it, or {place}.model_max_length, from which it is computed"
        yield Problem(f"{place}.rope_scaling.factor", f"not set, and {place}.rope_scaling.type is {scaling['type']}", do=do)


def _adapters(context: Context, place: str) -> Iterator[Problem]:
    if context.get(f"{place}.resume_adapter") and not context.get(f"{place}.adapters"):
        do = f"Name it: '{place}.adapters=[path]'"
        yield Problem(f"{place}.resume_adapter", "true, but finetune.adapters is empty", do=do)


def _training(context: Context, place: str) -> Iterator[Problem]:
    training = context.get(place) or {}
    evaluates, saves = training.get("eval_strategy"), training.get("save_strategy")
    if training.get("bf16") and training.get("fp16"):
        yield Problem(f"{place}.fp16", f"true, but {place}.bf16 is true as well", do="Keep one of them")
    if training.get("load_best_model_at_end"):
        if evaluates == "no":
            found = f"true with {place}.eval_strategy=no"
            yield Problem(f"{place}.load_best_model_at_end", found, do="Set eval_strategy to steps or epoch")
        elif saves not in ("best", evaluates):
            found = f"true, but {place}.save_strategy={saves} is not {place}.eval_strategy={evaluates}"
            yield Problem(f"{place}.load_best_model_at_end", found, do=f"Set save_strategy={evaluates}")


def _dataset(context: Context, place: str) -> Iterator[Problem]:
    dataset = context.get(place) or {}
    ways = [name for name in ("val_size", "val_files", "val_split") if dataset.get(name)]
    if len(ways) > 1:
        own = next((name for name in ways if context.user_set(f"{place}.{name}")), ways[0])
        others = " and ".join(f"{place}.{name}={shown(dataset[name])}" for name in ways if name != own)
        neutral = ", ".join(f"{name}={'0' if name == 'val_size' else 'null'}" for name in ways if name != own)
        yield Problem(f"{place}.{own}", f"set, but {others} holds out examples too", do=f"Keep one of them: {neutral}")
    if dataset.get("streaming") and isinstance(dataset.get("val_size"), float) and 0 < dataset["val_size"] < 1:
        found = f"{dataset['val_size']:g} is a fraction, but the length of a streamed dataset is unknown"
        yield Problem(f"{place}.val_size", found, do="Give a number of examples, or val_files")
    if dataset.get("streaming"):
        yield from _unknown_length(context, place)


def _unknown_length(context: Context, place: str) -> Iterator[Problem]:
    for step in context.steps:
        training = context.part(step, "training")
        trains = context.trains(step) and context.part(step, "dataset") == place
        if trains and (context.get(f"{training}.max_steps") or -1) < 1:
            found = "not set, but the length of a streamed dataset is unknown, so a number of epochs is not enough"
            yield Problem(f"{training}.max_steps", found, do="Set it")


def _generation(context: Context) -> Iterator[Problem]:
    generation = context.get("generation") or {}
    least, most = generation.get("min_new_tokens"), generation.get("max_new_tokens")
    if least is not None and most is not None and least > most:
        yield Problem("generation.min_new_tokens", f"{least} is more than generation.max_new_tokens={most}")


def without_dropout(context: Context, finetune: str) -> bool:
    """Whether every training with this `finetune` disables all dropout of the model, as trl does for preferences."""
    trainings = [
        context.part(step, "training") for step in context.steps if context.trains(step) and context.part(step, "finetune") == finetune
    ]
    return bool(trainings) and all(context.get(f"{training}.disable_dropout") for training in trainings)


def evaluates_nothing(context: Context, training: str) -> bool:
    """Whether every training step with these arguments has no held-out examples to evaluate on."""
    steps = [s for s in context.steps if context.trains(s) and context.part(s, "training") == training]
    return bool(steps) and not any(holds_out(context, context.part(step, "dataset")) for step in steps)


def check_best_model(context: Context) -> Iterator[Problem]:
    """A problem for each metric that isn't measured, and for each evaluation whose model could not be saved as the best one."""
    for place in context.places("training"):
        training = context.get(place) or {}
        if not any(context.trains(step) and context.part(step, "training") == place for step in context.steps):
            continue
        yield from _metric(context, place, training)
        yield from _predictions(context, place, training)
        evaluated = training.get("eval_strategy") != "no" or training.get("predict_steps") is not None
        if training.get("early_stopping_patience") is not None and not evaluated:
            found = f"set with {place}.eval_strategy=no, so it doesn't have an evaluation to compare"
            yield Problem(f"{place}.early_stopping_patience", found, do=f"Set {place}.eval_strategy to steps or epoch")


def _metric(context: Context, place: str, training: Mapping[str, Any]) -> Iterator[Problem]:
    """Whether the metric is measured, as far as that is known."""
    wanted, key = training.get("metric_for_best_model"), f"{place}.metric_for_best_model"
    trainer = training.get("trainer") or {}
    known = MEASURED.get(str(trainer.get("_target_")))
    if wanted is None or known is None or trainer.get("compute_metrics"):
        return
    name = str(wanted).removeprefix("eval_")
    of_texts, any_text = _names(training.get("metrics"))
    answered, any_answer = _names(context.get("steps.predict.metrics"))
    generated = [f"{_GENERATED}{answer}" for answer in answered] if _answers(training) else []
    measured = [*(one for one in known if not one.endswith("/")), *of_texts, *generated]
    if name in measured or name.startswith(tuple(one for one in known if one.endswith("/"))):
        if name in generated and training.get("predict_steps") is None:
            found = f"{wanted}, but the model doesn't answer prompts in training"
            yield Problem(key, found, do=f"Set {place}.predict_steps")
    elif not (any_text or (any_answer and name.startswith(_GENERATED) and _answers(training))):
        found = f"{wanted}, which this stage's evaluations don't measure"
        yield Problem(key, found, did_you_mean(name, measured), f"Known: {', '.join(measured)}")


def _names(metrics: Any) -> tuple[list[str], bool]:
    """The names that metrics measure, and whether one of the metrics is the user's own, which may measure anything."""
    targets = [str(node.get("_target_")) for node in (metrics or {}).values() if isinstance(node, dict)]
    return [name for target in targets for name in OF_ANSWERS.get(target, ())], any(target not in OF_ANSWERS for target in targets)


def _answers(training: Mapping[str, Any]) -> bool:
    return (training.get("predict") or {}).get("_target_") == ANSWERS


def _predictions(context: Context, place: str, training: Mapping[str, Any]) -> Iterator[Problem]:
    """A problem for each setting that contradicts the steps at which prompts are answered."""
    steps, key = training.get("predict_steps"), f"{place}.predict_steps"
    if steps is None:
        return
    if (training.get("predict") or {}).get("_target_") not in (ANSWERS, CONTINUES):
        yield Problem(key, f"set, but the model of {place}.stage={training.get('stage')} doesn't write", do="Leave it out")
        return
    if evaluates_nothing(context, place):
        yield Problem(key, "set, but examples to answer are not held out", do="Set dataset.val_size")
        return
    if (engine := context.get("distributed.name")) in _SHARDED:
        found = f"set, but with distributed={engine} a process doesn't have the whole model that would answer"
        yield Problem(key, found, do="Leave it out, or set distributed=ddp")
        return
    saves, every = training.get("save_strategy"), training.get("save_steps")
    if training.get("load_best_model_at_end") and saves != "best":
        at_steps = saves == "steps" and isinstance(every, int | float) and every >= 1
        if not at_steps or steps % every:
            when = f"every {every:g} steps" if at_steps else f"by {place}.save_strategy={saves}"
            found = f"{steps}, but checkpoints are written {when}, so the best model might not be saved"
            yield Problem(key, found, do=f"Set {place}.save_strategy=best, or a multiple of save_steps")
    by_answers = str(training.get("metric_for_best_model")).removeprefix("eval_").startswith(_GENERATED)
    if by_answers and training.get("lr_scheduler_type") in _BY_PLATEAU and training.get("eval_strategy") != "no":
        at_each = training.get("eval_strategy") == "steps" and (training.get("eval_steps") or 0) % steps == 0 and training.get("eval_steps")
        if not at_each:
            found = f"{steps}, but {place}.lr_scheduler_type={training['lr_scheduler_type']} needs the answers' metric at every evaluation"
            yield Problem(key, found, do=f"Set {place}.eval_strategy=no, or eval_steps={steps}")


def check_resumed(context: Context) -> Iterator[Problem]:
    """A problem for each checkpoint to resume from that is missing or incomplete."""
    for step in context.steps:
        if context.trains(step):
            yield from _check_resumed(context, step)


def _check_resumed(context: Context, step: str) -> Iterator[Problem]:
    key = f"{context.part(step, 'training')}.resume_from_checkpoint"
    wanted, output = context.get(key), context.get("output_dir")
    newest_of_this_run = str(wanted).lower() == "true"
    if wanted is None or not isinstance(output, str) or (newest_of_this_run and context.in_sweep):
        return
    if newest_of_this_run and Path(output).name == started(_BY_TIME):
        found = "true, but without output_dir each run has a new directory, which doesn't have a checkpoint yet"
        yield Problem(key, found, do="Set output_dir to the run to continue, or set auto_resume=true instead, which finds it")
        return
    directory = Path(output).expanduser() / step
    find = import_own("llmmod.trainers.callbacks.resume.find_checkpoint")
    for problem in problems_of(find, wanted, train_dir=directory, content=rank() == 0)[1]:
        yield Problem(key, problem.found, problem.allowed, problem.do)
