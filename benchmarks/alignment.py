"""Completion tokens per CPU second and peak memory of dpo, kto, rm, ppo and grpo, compared with trl's trainers on the same model and rows.

    python benchmarks/alignment.py [--stages dpo,kto,rm,ppo,grpo] [--steps 5]

The model is SmolLM2-135M in float32, with random weights, which are as fast as trained ones, and LoRA of rank 8 on all linear layers.
Lengths are like those of preference data: prompts have a median of 70 tokens and completions of 210, both are log-normal, and together they
have at most 512 tokens. Three quarters of the tokens are completions, if prompts are not shared. A batch has 2 pairs, or 4 labelled
completions for kto. Trainers get token ids, in the same order.

ppo and grpo sample completions. A completion ends at one of a thousand tokens, which a random model samples after 45 tokens on average, and
has at most 128 tokens. A rollout of ppo has 16 prompts and is used for two epochs; grpo samples 8 completions for each of 4 prompts. The
reward is the share of even ids, which takes no time. trl 1.16 does not have PPO, so ppo is compared with `sft`, llmmod's supervised
fine-tuning on completions of the same lengths.

Each trainer is a process of its own, one after the other. Only tokens of completions are counted. The CPU seconds are those from the end of
the first optimizer step, for ppo the last step of the first rollout, to the end of the last step.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import sys
import tempfile
import time
from pathlib import Path

from measure import machine, measure
from training import FIRST, LONGEST, LORA, SHAPE, TRAINING, VOCABULARY, model

PAIRS, JUDGED, ONLINE = 2, 4, 8  # rows of a batch
PROMPT, ANSWER, SPREAD = 70, 210, 0.6
SHORTEST_ANSWER, LONGEST_PROMPT = 20, 200
ENDS = [*range(FIRST, FIRST + 1024)]  # tokens that end a sampled completion
NEW = 128
STAGES = {"dpo": ("llmmod", "trl"), "kto": ("llmmod", "trl"), "rm": ("llmmod", "trl"), "ppo": ("llmmod", "sft"), "grpo": ("llmmod", "trl")}
BATCHES = {"dpo": (PAIRS, 1), "kto": (JUDGED, 1), "rm": (PAIRS, 1), "ppo": (ONLINE, 2), "grpo": (ONLINE, 4)}  # rows, accumulation steps
PASSES = 2  # epochs of ppo over a rollout


def rows(stage, steps):
    """The training rows of a stage, as ids."""
    draw = random.Random(1)

    def ids(median, least, most):
        length = min(most, max(least, int(median * draw.lognormvariate(0, SPREAD))))
        return [draw.randrange(ENDS[-1] + 1, VOCABULARY) for _ in range(length)]

    size, accumulated = BATCHES[stage]
    for number in range(size * accumulated * (steps + 1)):
        row = {"prompt_ids": ids(PROMPT, 10, LONGEST_PROMPT)}
        most = LONGEST - len(row["prompt_ids"])
        if stage == "kto":
            row |= {"completion_ids": ids(ANSWER, SHORTEST_ANSWER, most), "label": number % 2 == 0}
        elif stage in ("dpo", "rm"):
            row |= {name: ids(ANSWER, SHORTEST_ANSWER, most) for name in ("chosen_ids", "rejected_ids")}
        yield row


def answer_tokens(row):
    """The number of tokens in all completions of a row."""
    return sum(len(row.get(name, ())) for name in ("chosen_ids", "rejected_ids", "completion_ids"))


class Reward:
    """The share of even ids, for trl's trainer and for llmmod's; counts the tokens of the completions that it scores."""

    __name__ = "even"
    tokens = 0

    def __call__(self, completion_ids, **others):
        """A number for each completion."""
        self.tokens += sum(map(len, completion_ids))
        return [sum(token % 2 == 0 for token in ids) / len(ids) for ids in completion_ids]

    def score(self, completions):
        """The same for llmmod's `Completions`, as a tensor."""
        import torch

        return torch.tensor(self(completions.ids))


def clock(stage, count):
    """A callback that prints speed and peak memory, without the first steps; `count`: optimizer steps so far -> tokens so far."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            self.ends = []

        def on_step_end(self, args, state, control, **kwargs):
            self.ends.append((time.process_time(), count(state.global_step)))

        def on_train_end(self, args, state, control, **kwargs):
            (began, before), (ended, after) = self.ends[PASSES - 1 if stage == "ppo" else 0], self.ends[-1]
            peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
            print("\n" + json.dumps({"tokens_per_cpu_s": (after - before) / (ended - began), "peak_gb": peak_gb}))

    return Clock()


def llmmod(stage, data, directory, given):
    """llmmod's trainer, as `stage=…` builds it."""
    from llmmod.config.schema import training
    from llmmod.models.matmul import onednn_products
    from llmmod.trainers.online.rewards import Rewards

    trainer, collator, conf = {
        "dpo": ("preference.trainers.DpoTrainer", "PrefixSharingCollator", training.DpoConf),
        "kto": ("preference.trainers.KtoTrainer", "KTOCollator", training.KtoConf),
        "rm": ("rm.RmTrainer", "PrefixSharingRewardCollator", training.RmConf),
        "ppo": ("ppo.trainer.PpoTrainer", None, training.PpoConf),
        "grpo": ("online.grpo.GrpoTrainer", None, training.GrpoConf),
    }[stage]
    given = given | ({"collator": {"_target_": f"llmmod.data.collators.{collator}"}} if collator else {})
    given = given | ({"num_ppo_epochs": PASSES} if stage == "ppo" else {})
    conf = conf(stage=stage, trainer={"_target_": f"llmmod.trainers.{trainer}"}, **given)
    reward = Reward()
    with onednn_products():  # as in a run of llmmod
        made = trainer_of(conf, reward_model() if stage == "rm" else policy(), data, directory, counted(stage, data, reward))
        if stage in ("ppo", "grpo"):
            made.rewards = Rewards(dict.fromkeys(getattr(made, "reward_func_names", ["even"]), reward.score))
        made.train()


def sft(stage, data, directory, given):
    """llmmod's supervised fine-tuning on completions as long as those that ppo samples."""
    from datasets import Dataset

    from llmmod.config.schema.training import SftConf
    from llmmod.models.matmul import onednn_products

    draw, learnt = random.Random(2), []
    for row in data:
        length = next((n for n in range(1, NEW) if draw.randrange(VOCABULARY) < len(ENDS)), NEW)
        answer = [draw.randrange(FIRST, VOCABULARY) for _ in range(length)]
        prompt = row["prompt_ids"]
        learnt.append({"completion_ids": answer, "input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer})
    trainer, collator = {"_target_": "llmmod.trainers.sft.SftTrainer"}, {"_target_": "llmmod.data.collators.FlatteningCollator"}
    del given["max_completion_length"]
    given["max_steps"] //= PASSES
    conf = SftConf(stage="sft", trainer=trainer, collator=collator, **given)
    data = Dataset.from_list(learnt)
    with onednn_products():
        trainer_of(conf, policy(), data, directory, counted("sft", data, None, size=ONLINE * 2)).train()


def trainer_of(conf, learner, data, directory, callback):
    """llmmod's trainer for a stage."""
    from llmmod.models.loading.tiny import tiny_tokenizer
    from llmmod.trainers.arguments import training_arguments
    from llmmod.trainers.build import trainer_from

    args = training_arguments(conf, output_dir=Path(directory), seed=1, smoke=False, has_eval=False)
    return trainer_from(conf, model=learner, args=args, train=data, evaluation=None, tokenizer=tiny_tokenizer(), callbacks=[callback])


def policy(*, lora=True):
    """The language model; its completions end at one of `ENDS`."""
    made = model(lora=lora)
    made.generation_config.eos_token_id, made.generation_config.pad_token_id = ENDS, 2
    return made


def reward_model():
    """The same model with a reward head, and with an adapter."""
    from peft import LoraConfig, get_peft_model

    from llmmod.models.reward import with_reward_head

    return get_peft_model(with_reward_head(model(lora=False)), LoraConfig(task_type="SEQ_CLS", **LORA))


def trl(stage, data, directory, given):
    """trl's trainer with its own collator, on ids; as in llmmod, the reference is the model without the adapter."""
    import trl as library
    from peft import LoraConfig
    from transformers import LlamaConfig, LlamaForSequenceClassification

    from llmmod.models.loading.tiny import tiny_tokenizer

    name, reward = {"dpo": "DPO", "kto": "KTO", "rm": "Reward", "grpo": "GRPO"}[stage], Reward()
    given = given | {"use_cpu": True, "bf16": False, "disable_tqdm": True, "remove_unused_columns": False}
    args = getattr(library, f"{name}Config")(directory, **given, **({} if stage == "grpo" else {"max_length": None}))

    class OnIds(getattr(library, f"{name}Trainer")):
        def _prepare_dataset(self, dataset, *args, **kwargs):
            return dataset

        def _tokenize_prompts(self, prompts):
            return [json.loads(prompt) for prompt in prompts], None, {}

    callback, more = counted(stage, data, reward), {}
    if stage == "kto":  # each prompt with the completion of another row of its batch, as in trl's own preparation
        answers = data["completion_ids"]
        data = data.add_column("KL_completion_ids", [answers[n - 1 if n % JUDGED else n + JUDGED - 1] for n in range(len(data))])
    elif stage == "rm":
        data = data.map(lambda row: {name: row["prompt_ids"] + row[name] for name in ("chosen_ids", "rejected_ids")})
    elif stage == "grpo":
        data, more = data.map(lambda row: {"prompt": json.dumps(row["prompt_ids"])}), {"reward_funcs": reward}
    learner = LlamaForSequenceClassification(LlamaConfig(**SHAPE, num_labels=1)) if stage == "rm" else policy(lora=False)
    lora = LoraConfig(task_type="SEQ_CLS" if stage == "rm" else "CAUSAL_LM", **LORA)
    OnIds(learner, args=args, train_dataset=data, processing_class=tiny_tokenizer(), callbacks=[callback], peft_config=lora, **more).train()


def counted(stage, data, reward, *, size=None):
    """The clock of a stage: it counts sampled completions when they are scored, and others by the rows of the steps so far."""
    if stage in ("ppo", "grpo"):
        return clock(stage, lambda steps: reward.tokens)
    tokens, size = [answer_tokens(row) for row in data], size or BATCHES[stage][0]
    return clock(stage, lambda steps: sum(tokens[: steps * size]))


def arguments(stage, steps):
    """The arguments that all trainers of a stage get."""
    size, accumulated = BATCHES[stage]
    online = {"max_completion_length": NEW} if stage in ("ppo", "grpo") else {}
    own = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulated}
    return TRAINING | own | online | {"max_steps": steps * PASSES if stage == "ppo" else steps}


def one(stage, name, steps):
    """Train; the clock prints the figures as JSON."""
    from datasets import Dataset

    data = Dataset.from_list(list(rows(stage, steps)))
    with tempfile.TemporaryDirectory() as directory:
        {"llmmod": llmmod, "trl": trl, "sft": sft}[name](stage, data, directory, arguments(stage, steps))


def main():
    """Print the figures of each trainer, and then the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--stages", default=",".join(STAGES), help="separated by commas")
    parser.add_argument("--steps", type=int, default=5, help="optimizer steps, or rollouts for ppo; the first isn't counted")
    parser.add_argument("--one", nargs=2, metavar=("STAGE", "TRAINER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        one(*given.one, given.steps)
        return
    print(machine(), flush=True)
    table = ["| | llmmod | compared with | times as fast |", "|---|---|---|---|"]
    for stage in given.stages.split(","):
        speed, shown = [], []
        for name in STAGES[stage]:
            command = [sys.executable, __file__, "--one", stage, name, "--steps", str(given.steps)]
            done = measure(command, env={"HF_HUB_OFFLINE": "1", "CI": "1"})
            found = next((json.loads(line) for line in reversed(done.output.splitlines()) if line.startswith('{"tokens_per_cpu_s"')), None)
            if found is None:
                sys.exit(done.output[-3000:])
            speed.append(found["tokens_per_cpu_s"])
            shown.append(f"{speed[-1]:.1f}; {found['peak_gb']:.2f} GB")
            print(f"{stage}: {name} {shown[-1]}", flush=True)
        beside = STAGES[stage][1]
        table.append(f"| {stage} | {shown[0]} | {beside}: {shown[1]} | {speed[0] / speed[1]:.2f} |")
    print("\n" + "\n".join(table))


if __name__ == "__main__":
    main()
