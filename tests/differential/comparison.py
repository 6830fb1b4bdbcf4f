"""Fixtures and functions for the tests that compare llmmod with `plain_loop`.

llmmod runs as a user runs it, from a configuration and files to an exported model. The two share only the checkpoint, the token ids (from a
run's preview.jsonl), and what is drawn at random; see `plain_loop`. Everything else is computed twice.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass

import observed
import plain_loop as plain
import pytest
import torch
from byte_llama import write_byte_llama

STAGES = tuple(plain.TASKS)
WAYS = tuple(plain.PEAK_RATE)


@dataclass(frozen=True)
class Tolerance:
    """The largest differences that are allowed.

    Args:
        loss: of a step, in nats.
        gradient: norm of the difference divided by the norm of the gradient, over all parameters.
        moved: the same ratio, for the change of the weights by three steps of AdamW.
        evaluation: of a metric, in its own unit; relative to its value if that is above 1.
        logits: of the exported model; the logits are around 3.
    """

    loss: float
    gradient: float
    moved: float
    evaluation: float
    logits: float


TOLERANCES = {
    # The same sums in another order, with 24 bits of mantissa, give errors of 1e-7 (measured: gradients differ by 1e-7 to 3e-6). AdamW
    # divides each gradient by its own size, so gradients near 0 count as much as the others, and so do their errors (measured: up to
    # 3e-5; for another model of this size 2e-4). This leaves a margin of at least 20 for other machines. A term that a step leaves out
    # or counts twice makes a difference of at least a tenth.
    "float32": Tolerance(loss=3e-5, gradient=1e-4, moved=5e-3, evaluation=1e-4, logits=2e-4),
    # 8 bits of mantissa: a relative error of 4e-3 in each activation. (Measured: gradients differ by up to 4e-2, and AdamW's updates by up
    # to 7e-2.) Both sides round exported weights to bfloat16, some of them to different neighbours, and so are logits: near 4, neighbours
    # differ by 3e-2.
    "bfloat16": Tolerance(loss=3e-2, gradient=1.5e-1, moved=3e-1, evaluation=5e-2, logits=2.5e-1),
}


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A directory with the checkpoint in it, and a file of rows for each kind of stage."""
    directory = tmp_path_factory.mktemp("differential")
    write_byte_llama(directory / "float32", untied=True, positions=256)
    model = plain.checkpoint(directory / "float32", "sft")
    model.to(torch.bfloat16).save_pretrained(directory / "bfloat16")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(directory / "float32" / name, directory / "bfloat16" / name)
    for stage in STAGES:
        (directory / f"{stage}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in data(stage)))
    return directory


def data(stage):
    """A row for each place in the steps. Questions and answers differ in length, so that an error in the padding of batches would show."""
    count = plain.STEPS * plain.ROWS_A_STEP
    questions = [f"What is {n} and {'one ' * (n % 4)}more?" for n in range(count)]
    good = [f"{n + 1 + n % 4}{'!' * (n % 5)}" for n in range(count)]
    bad = [f"I would rather not say{'.' * (n % 3)}" for n in range(count)]
    numbered = list(enumerate(zip(questions, good, bad, strict=True)))
    rows = {
        "pt": [{"text": f"{q} {a}"} for q, a in zip(questions, good, strict=True)],
        "sft": [{"instruction": q, "output": a} for q, a in zip(questions, good, strict=True)],
        "rm": [{"prompt": q, "chosen": a, "rejected": b} for q, a, b in zip(questions, good, bad, strict=True)],
        "kto": [{"prompt": q, "completion": (b, a)[n % 3 == 1], "label": n % 3 != 1} for n, (q, a, b) in numbered],
        "ppo": [{"prompt": q} for q in questions],
    }
    return rows[{"dpo": "rm", "grpo": "ppo"}.get(stage, stage)]


def overrides(work, stage, weights, *more):
    """The overrides of a run; the other keys keep their defaults."""
    settings = {
        "stage": stage, "model": "llama", "model.pretrained_model_name_or_path": work / weights, "render": "chatml", "dataset": "json",
        "dataset.data_files": work / f"{stage}.jsonl", "dataset.val_files": work / f"{stage}.jsonl", "reuse": "false",
        "training.max_steps": plain.STEPS, "training.per_device_train_batch_size": plain.ROWS_A_BATCH,
        "training.gradient_accumulation_steps": plain.ROWS_A_STEP // plain.ROWS_A_BATCH, "training.per_device_eval_batch_size": 64,
        "training.train_sampling_strategy": "sequential", "training.lr_scheduler_type": "linear", "training.warmup_steps": 0,
        "training.weight_decay": plain.WEIGHT_DECAY, "training.max_grad_norm": plain.MOST_NORM, "training.logging_steps": 1,
        "training.eval_strategy": "no", "training.eval_on_start": "false", "training.save_strategy": "no",
        "+training.callbacks.observer._target_": "observed.Observer",
    }  # fmt: skip
    of_stage = {
        "pt": {"dataset.cutoff_len": 32},  # the joined documents make twelve blocks of this many tokens
        "dpo": {"training.beta": plain.BETA},
        "kto": {"training.beta": plain.BETA},
        "ppo": {
            "training.num_ppo_epochs": plain.STEPS_A_ROLLOUT, "training.kl_coef": plain.KL_COEF, "training.gamma": plain.GAMMA,
            "training.lam": plain.LAMBDA, "training.vf_coef": plain.VALUE_COEF, "training.entropy_coef": plain.ENTROPY_COEF,
            "training.cliprange": plain.CLIP, "training.cliprange_value": plain.CLIP, "training.target_kl": "null",
        },
        "grpo": {
            "training.beta": plain.BETA, "training.epsilon": plain.CLIP, "training.num_iterations": plain.STEPS_A_ROLLOUT,
            "training.num_generations": plain.GROUP, "training.num_generations_eval": 1,
        },
    }  # fmt: skip
    if stage in ("ppo", "grpo"):
        settings |= {"+training.reward.mine._target_": "observed.reward", "training.max_completion_length": 6}
    return [f"{key}={value}" for key, value in (settings | of_stage.get(stage, {})).items()] + list(more)


def of_way(way):
    """The overrides of a way to fine-tune."""
    chosen = [f"finetune={way}", f"training.learning_rate={plain.PEAK_RATE[way]}"]
    if way == "freeze":
        chosen += ["finetune.num_layers_trainable=1", "finetune.extra_trainable=[norm]"]
    if way in ("lora", "qlora"):
        targets = ",".join(plain.LORA["target_modules"])
        chosen += [f"finetune.r={plain.LORA['r']}", f"finetune.lora_alpha={plain.LORA['lora_alpha']}"]
        chosen += [f"finetune.target_modules=[{targets}]"]
    return chosen


@pytest.fixture(scope="module")
def rows(work):
    """A function that returns the token ids of a stage's examples, from its preview."""
    import llmmod

    def make(stage):
        directory = work / f"preview-{stage}"
        if not directory.exists():
            chosen = [*overrides(work, stage, "float32"), "pipeline=[preview]", f"output_dir={directory}", "finetune=full"]
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("LLMMOD_ALLOW", "observed")
                llmmod.run(llmmod.compose(chosen))
        seen = [json.loads(line) for line in (directory / "preview" / "preview.jsonl").read_text().splitlines()]
        if stage in ("pt", "sft"):
            return seen
        parts = [_parted(line) for line in seen]
        if stage in ("rm", "dpo"):
            pairs = zip(parts[::2], parts[1::2], strict=True)
            return [{"prompt_ids": prompt, "chosen_ids": a, "rejected_ids": b} for (prompt, a), (_, b) in pairs]
        if stage == "kto":
            labels = [row["label"] for row in data("kto")]
            return [{"prompt_ids": p, "completion_ids": a, "label": label} for (p, a), label in zip(parts, labels, strict=True)]
        return [{"prompt_ids": prompt} for prompt, _ in parts]

    return make


def _parted(line):
    """The ids of the prompt and those of the answer."""
    begin = next((place for place, label in enumerate(line["labels"]) if label != -100), len(line["labels"]))
    return line["input_ids"][:begin], line["input_ids"][begin:]


def computed(directory, stage, chosen, examples):
    """What llmmod computes, and its random draws: the initial trained weights, and the answers with their rewards.

    Args:
        examples: token ids, from `rows`.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    import llmmod

    observed.ANSWERS.clear()
    metrics = llmmod.run(llmmod.compose([*chosen, "pipeline=[train,evaluate,export]", f"output_dir={directory}"]))
    training = observed.TRAININGS[-1]
    evaluation = {name.removeprefix("eval_"): value for name, value in metrics.items() if name.startswith("eval_")}
    of_question = {row.get("prompt"): example.get("prompt_ids") for row, example in zip(data(stage), examples, strict=False)}
    answers = [[(of_question[question], ids, reward) for question, ids, reward in call] for call in observed.ANSWERS]
    exported = (AutoModelForSequenceClassification if stage == "rm" else AutoModelForCausalLM).from_pretrained(directory / "export")
    with torch.no_grad():
        logits = exported.eval()(input_ids=torch.tensor([plain.first_ids(examples[0])])).logits.float()
    found = plain.Found(training.losses, training.gradients, observed.moved(training), evaluation, logits)
    return found, training.start, answers


@pytest.fixture
def both(work, rows, monkeypatch):
    """A function that returns what llmmod computes, and a function that computes the same with the plain loop."""
    monkeypatch.setenv("LLMMOD_ALLOW", "observed")

    def compute(stage, way, weights, *more):
        examples = rows(stage)
        run = work / f"{stage}-{way}-{weights}-{len(observed.TRAININGS)}"
        found, drawn, answers = computed(run, stage, overrides(work, stage, weights, *of_way(way), *more), examples)
        return found, lambda: plain.trained(work / weights, stage, way, drawn=drawn, rows=examples, answers=answers)

    return compute


def apart(found, expected, most):
    """Name -> difference, of what differs by more than its tolerance."""
    assert len(found.losses) == len(found.gradients) == plain.STEPS
    steps = range(plain.STEPS)
    distances = {f"loss of step {n}": (abs(found.losses[n] - expected.losses[n]), most.loss) for n in steps}
    distances |= {f"gradient of step {n}": (relative(found.gradients[n], expected.gradients[n]), most.gradient) for n in steps}
    distances["moved"] = relative(found.moved, expected.moved), most.moved
    for name, value in expected.evaluation.items():
        distances[name] = abs(found.evaluation[name] - value), most.evaluation * max(1, abs(value))
    distances["logits"] = (found.logits - expected.logits).abs().max().item(), most.logits
    return {name: distance for name, (distance, may_be) in distances.items() if not distance <= may_be}


def relative(found, expected):
    """The norm of the difference divided by the norm of the expected values, over all parameters."""
    assert found.keys() == expected.keys()
    difference = torch.cat([(found[name] - expected[name]).flatten() for name in expected])
    return (difference.norm() / torch.cat([value.flatten() for value in expected.values()]).norm()).item()
