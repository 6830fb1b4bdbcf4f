"""What llmmod should compute, written out: three optimizer steps of each stage, in plain loops over transformers and peft.

Nothing here comes from llmmod. The inputs are a checkpoint's directory, token ids, and what is drawn at random: the initial values of a new
adapter or head and, where a model answers prompts, the answers with their rewards. Every example goes through the model alone: without
padding, packing, shared prompts, caches or accumulation. Formulas are written as in the papers, each in one place.

If the checkpoint is in bfloat16, trained weights are in float32 and compute in it; frozen weights stay as they are. After training
with full or freeze, weights are rounded to the checkpoint's type and evaluated in it. An adapter's merged weights are rounded for export.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch.nn.functional import logsigmoid

STEPS, ROWS_A_STEP, ROWS_A_BATCH = 3, 4, 2  # only kto's loss depends on the batch
PEAK_RATE = {"full": 1e-4, "freeze": 1e-4, "lora": 2e-3, "qlora": 2e-3}
WEIGHT_DECAY, MOST_NORM = 1.0, 0.5
LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]}
TRAINED_LAYER = "model.layers.1."  # `freeze` trains this layer and the last norm
BETA = 0.1  # of dpo, kto and grpo
# For ppo and grpo: each rollout is used for two steps, so the third step has a new one, of a policy that differs from its reference.
STEPS_A_ROLLOUT, CLIP, GROUP = 2, 0.2, 4
KL_COEF, GAMMA, LAMBDA, VALUE_COEF, ENTROPY_COEF = 0.1, 0.99, 0.95, 0.1, 0.01


@dataclass
class Found:
    """The results of a training.

    Args:
        losses: of each step.
        gradients: of each step, by parameter, clipped, as the optimizer gets them.
        moved: the change of each parameter since the start.
        evaluation: metrics of the held-out examples after the last step, by the names that llmmod gives them.
        logits: of the first example, by the exported model.
    """

    losses: list[float] = field(default_factory=list)
    gradients: list[dict[str, torch.Tensor]] = field(default_factory=list)
    moved: dict[str, torch.Tensor] = field(default_factory=dict)
    evaluation: dict[str, float] = field(default_factory=dict)
    logits: torch.Tensor = field(default_factory=lambda: torch.zeros(0))


def trained(directory, stage, way, *, drawn, rows, answers):
    """Train three steps of a stage.

    Args:
        directory: of the checkpoint.
        stage: pt, sft, rm, dpo, kto, ppo or grpo.
        way: full, freeze, lora or qlora.
        drawn: name -> initial value of each trained weight, also of new ones that are drawn at random.
        rows: see the stage's class. The first four are for the first step, and so on; an evaluation uses all of them.
        answers: for ppo and grpo, (prompt ids, answer ids, reward) of each rollout; the last one is the evaluation's.
    """
    torch.manual_seed(0)
    model = model_of(directory, stage, way, drawn)
    reference = model_of(directory, stage, way, drawn).requires_grad_(False) if issubclass(TASKS[stage], Preference | Online) else None
    task = TASKS[stage](model, reference, rows, answers)
    weights = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad} | task.head
    start = {name: weight.detach().clone() for name, weight in weights.items()}
    optimizer, found = adamw(weights), Found()
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = PEAK_RATE[way] * (1 - step / STEPS)
        loss = task.loss(step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights.values(), MOST_NORM)
        found.losses.append(loss.item())
        found.gradients.append({name: weight.grad.clone() for name, weight in weights.items() if weight.grad is not None})
        optimizer.step()
        optimizer.zero_grad()
    found.moved = {name: weight.detach() - start[name] for name, weight in weights.items()}
    with torch.no_grad():
        exported = stored(directory, stage, merged(model) if way in ("lora", "qlora") else weights)
        found.logits = exported(input_ids=torch.tensor([first_ids(rows[0])])).logits.float()
        if way in ("full", "freeze"):
            task.model = exported
        found.evaluation = task.evaluation()
    return found


def model_of(directory, stage, way, drawn):
    """The checkpoint, where only the trained weights require gradients, or with an adapter."""
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import BitsAndBytesConfig

    if way in ("full", "freeze"):
        model = checkpoint(directory, stage)
        free = {"full": "", "freeze": (TRAINED_LAYER, "model.norm.", "score.")}[way]
        for name, parameter in model.named_parameters():
            parameter.requires_grad = name.startswith(free)
        if way == "full":
            model.float()
        for module in model.modules() if way == "freeze" else ():
            if any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
                compute_in_float32(module, back=module is not getattr(model, "score", None))
    elif way == "lora":
        model = get_peft_model(checkpoint(directory, stage), lora_of(stage, LoraConfig))
    else:
        four_bit = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, llm_int8_skip_modules=["lm_head", "score"]
        )
        model = prepare_model_for_kbit_training(
            checkpoint(directory, stage, quantization_config=four_bit, device_map={"": "cpu"}), use_gradient_checkpointing=False
        )
        model = get_peft_model(model, lora_of(stage, LoraConfig))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in drawn:
                parameter.copy_(drawn[name])
    return model.train()  # without dropout; in eval mode bitsandbytes (0.50) computes in bfloat16 on some CPUs, without gradients


def checkpoint(directory, stage, **given):
    """The model of a directory, in the type of its weights; for rm, with a new head."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    if stage == "rm":
        return AutoModelForSequenceClassification.from_pretrained(directory, num_labels=1, **given)
    return AutoModelForCausalLM.from_pretrained(directory, **given)


def lora_of(stage, config):
    return config(task_type="SEQ_CLS" if stage == "rm" else "CAUSAL_LM", **LORA)


def compute_in_float32(module, *, back):
    """Let a module keep its weights and compute in float32, whatever its input; with `back`, its output has the weights' former type."""
    dtype = next(module.parameters()).dtype
    module.float().register_forward_pre_hook(lambda module, inputs: (inputs[0].float(), *inputs[1:]))
    if back:
        module.register_forward_hook(lambda module, inputs, output: output.to(dtype))


def stored(directory, stage, weights):
    """The checkpoint with these weights in place of its own, in its type."""
    model = checkpoint(directory, stage)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in weights:
                parameter.copy_(weights[name])
    return model


def merged(model):
    """name -> weight, for every weight of a model with an adapter: dequantized, with B A added."""
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit

    plain = {}
    for name, module in model.get_base_model().named_modules():
        layer = getattr(module, "base_layer", module)
        weight = (
            dequantize_4bit(layer.weight, layer.weight.quant_state) if isinstance(layer, Linear4bit) else getattr(layer, "weight", None)
        )
        if hasattr(module, "lora_A"):
            added = module.lora_B["default"].weight @ module.lora_A["default"].weight
            weight = weight.float() + LORA["lora_alpha"] / LORA["r"] * added
        if hasattr(module, "modules_to_save"):
            weight = module.modules_to_save["default"].weight
        if weight is not None:
            plain[f"{name}.weight"] = weight
    return plain


def adamw(weights):
    """AdamW as transformers creates it: norms and biases don't decay."""
    kept = [weight for name, weight in weights.items() if "norm" in name or name.endswith("bias")]
    decaying = [weight for weight in weights.values() if not any(weight is other for other in kept)]
    return torch.optim.AdamW([{"params": decaying, "weight_decay": WEIGHT_DECAY}, {"params": kept, "weight_decay": 0.0}])


def first_ids(row):
    return row.get("input_ids") or row["prompt_ids"] + row.get("chosen_ids", row.get("completion_ids", []))


def log_probs(model, ids):
    """log p of every token of the vocabulary, at each position but the first, [tokens - 1, vocabulary]."""
    return torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0, :-1].float(), dim=-1)


def answer_log_probs(model, prompt, answer):
    """log p of each token of an answer, [tokens]."""
    of_all = log_probs(model, prompt + answer)[len(prompt) - 1 :]
    return of_all.gather(1, torch.tensor(answer)[:, None])[:, 0]


def mean(values):
    return torch.stack(list(values)).mean()


class Task:
    """The loss and the evaluation of a stage.

    Args:
        model: the model that is trained.
        reference: the initial model, with weights of its own; None for a loss without one.
        rows: the examples.
        answers: see `trained`.
    """

    def __init__(self, model, reference, rows, answers):
        self.model, self.reference, self.rows, self.answers = model, reference, rows, answers
        self.head = {}  # trained parameters that aren't part of the model

    def rows_of(self, step):
        return self.rows[step * ROWS_A_STEP : (step + 1) * ROWS_A_STEP]


class Supervised(Task):
    """pt and sft: the mean of -log p over all tokens with a label. Rows: `input_ids`, and `labels`, -100 where a token isn't trained."""

    def loss(self, step):
        return -torch.cat([log_p for log_p, _ in self.labelled(self.rows_of(step))]).mean()

    def evaluation(self):
        log_p, right = (torch.cat(values) for values in zip(*self.labelled(self.rows), strict=True))
        loss = -log_p.mean().item()
        return {"loss": loss, "perplexity": math.exp(loss), "token_accuracy": right.float().mean().item()}

    def labelled(self, rows):
        for row in rows:
            labels, of_all = torch.tensor(row["labels"])[1:], log_probs(self.model, row["input_ids"])
            of_all, labels = of_all[labels != -100], labels[labels != -100]
            yield of_all.gather(1, labels[:, None])[:, 0], of_all.argmax(1) == labels


class Reward(Task):
    """rm: -log sigmoid(r(chosen) - r(rejected)) (Bradley & Terry 1952). Rows: `prompt_ids`, `chosen_ids`, `rejected_ids`."""

    def loss(self, step):
        return mean(-logsigmoid(chosen - rejected) for chosen, rejected in self.scores(self.rows_of(step)))

    def evaluation(self):
        chosen, rejected = (torch.stack(values) for values in zip(*self.scores(self.rows), strict=True))
        return {
            "loss": -logsigmoid(chosen - rejected).mean().item(),
            "accuracy": (chosen > rejected).float().mean().item(),
            "margin": (chosen - rejected).mean().item(),
            "chosen_reward": chosen.mean().item(),
            "rejected_reward": rejected.mean().item(),
        }

    def scores(self, rows):
        for row in rows:
            both = (torch.tensor([row["prompt_ids"] + row[name]]) for name in ("chosen_ids", "rejected_ids"))
            yield tuple(self.model(input_ids=ids).logits[0, 0].float() for ids in both)


class Preference(Task):
    """dpo: -log sigmoid(beta (log-ratio of chosen - log-ratio of rejected)) (Rafailov et al. 2023, eq. 7). Rows as in rm."""

    def loss(self, step):
        return mean(-logsigmoid(chosen - rejected) for chosen, rejected in self.rewards(self.rows_of(step)))

    def evaluation(self):
        chosen, rejected = (torch.stack(values) for values in zip(*self.rewards(self.rows), strict=True))
        return {
            "loss": -logsigmoid(chosen - rejected).mean().item(),
            "rewards/chosen": chosen.mean().item(),
            "rewards/rejected": rejected.mean().item(),
            "rewards/margins": (chosen - rejected).mean().item(),
            "rewards/accuracies": (chosen > rejected).float().mean().item(),
        }

    def rewards(self, rows):
        for row in rows:
            yield tuple(BETA * self.log_ratio(row["prompt_ids"], row[name]) for name in ("chosen_ids", "rejected_ids"))

    def log_ratio(self, prompt, answer):
        """log p(answer) - log p(answer) of the reference."""
        return answer_log_probs(self.model, prompt, answer).sum() - answer_log_probs(self.reference, prompt, answer).sum()


class Judged(Preference):
    """kto (Ethayarajh et al. 2024, eq. 8). Rows: `prompt_ids`, `completion_ids`, `label`.

    It compares with an estimate of the KL divergence, from mismatched pairs of a batch: each answer with the prompt of the next row.
    """

    def loss(self, step):
        rows = self.rows_of(step)
        batches = [rows[start : start + ROWS_A_BATCH] for start in range(0, len(rows), ROWS_A_BATCH)]
        return torch.cat([self.losses(batch)[0] for batch in batches]).mean()

    def evaluation(self):
        losses, ratios, kl = self.losses(self.rows)
        good = torch.tensor([row["label"] for row in self.rows])
        chosen, rejected = BETA * ratios[good].mean().item(), BETA * ratios[~good].mean().item()
        return {
            "loss": losses.mean().item(),
            "kl": kl.item(),
            "rewards/chosen": chosen,
            "rewards/rejected": rejected,
            "rewards/margins": chosen - rejected,
        }

    def losses(self, batch):
        answers = [row["completion_ids"] for row in batch]
        with torch.no_grad():
            mismatched = zip(batch, [answers[-1], *answers[:-1]], strict=True)
            kl = mean(self.log_ratio(row["prompt_ids"], answer) for row, answer in mismatched).clamp(min=0)
        ratios = torch.stack([self.log_ratio(row["prompt_ids"], row["completion_ids"]) for row in batch])
        signs = torch.tensor([1.0 if row["label"] else -1.0 for row in batch])
        return 1 - torch.sigmoid(BETA * signs * (ratios - kl)), ratios, kl


class Online(Task):
    """What ppo and grpo share: a token's loss is clipped as in PPO (Schulman et al. 2017, eq. 7), and averaged over a step's tokens."""

    def loss(self, step):
        if step % STEPS_A_ROLLOUT == 0:
            with torch.no_grad():
                self.rollout = self.learnt_from(self.answers[step // STEPS_A_ROLLOUT])
        return torch.cat([self.token_losses(*answer) for answer in self.rollout]).mean()

    def clipped(self, log_p, old, advantage):
        ratio = torch.exp(log_p - old)
        return -torch.minimum(ratio * advantage, ratio.clamp(1 - CLIP, 1 + CLIP) * advantage)

    def held_out(self):
        """Rewards, log-ratios to the reference (a tensor for each answer), and lengths."""
        *_, answers = self.answers
        both = [[answer_log_probs(model, p, a) for p, a, _ in answers] for model in (self.model, self.reference)]
        ratios = [own - other for own, other in zip(*both, strict=True)]
        return torch.tensor([reward for _, _, reward in answers]), ratios, torch.tensor([len(a) for _, a, _ in answers]).float()


class Ppo(Online):
    """ppo with a value head on the last hidden states, and advantages by GAE (Schulman et al. 2016, eq. 16), whitened over a rollout.

    The head's bias starts at the mean return of the first rollout's tokens; its weighted sum is divided by the root of the hidden size.
    """

    def __init__(self, *args):
        super().__init__(*args)
        self.width = self.model.config.hidden_size
        self.weight, self.bias = torch.zeros(1, self.width, requires_grad=True), torch.zeros(1, requires_grad=True)
        self.head = {"value_head.weight": self.weight, "value_head.bias": self.bias}

    def looked_at(self, prompt, answer):
        """log p, entropy and value of each token of an answer, each [tokens]; the value is predicted before the token is known."""
        output = self.model(input_ids=torch.tensor([prompt + answer]), output_hidden_states=True)
        before = slice(len(prompt) - 1, -1)
        of_all = torch.log_softmax(output.logits[0, before].float(), dim=-1)
        values = output.hidden_states[-1][0, before].float() @ self.weight[0] / math.sqrt(self.width) + self.bias
        return of_all.gather(1, torch.tensor(answer)[:, None])[:, 0], -(of_all.exp() * of_all).sum(1), values

    def learnt_from(self, answers):
        known = []
        for prompt, answer, reward in answers:
            log_p, _, values = self.looked_at(prompt, answer)
            rewards = -KL_COEF * (log_p - answer_log_probs(self.reference, prompt, answer))
            rewards[-1] += reward
            known.append([prompt, answer, log_p, values, rewards])
        if answers is self.answers[0]:
            returns = [gae(rewards, torch.zeros_like(rewards), 1.0) for *_, rewards in known]
            self.bias.fill_(torch.cat(returns).mean())
            known = [[*rest, torch.full_like(rewards, self.bias.item()), rewards] for *rest, _, rewards in known]
        advantages = [gae(rewards, values, LAMBDA) for *_, values, rewards in known]
        of_all = torch.cat(advantages)
        white = [(a - of_all.mean()) / torch.sqrt(of_all.var(correction=0) + 1e-8) for a in advantages]
        return [(p, a, old, v, w, v + g) for (p, a, old, v, _), w, g in zip(known, white, advantages, strict=True)]

    def token_losses(self, prompt, answer, old, old_values, advantages, returns):
        log_p, entropy, values = self.looked_at(prompt, answer)
        near = torch.minimum(torch.maximum(values, old_values - CLIP), old_values + CLIP)
        of_values = 0.5 * torch.maximum((values - returns) ** 2, (near - returns) ** 2)
        return self.clipped(log_p, old, advantages) + VALUE_COEF * of_values - ENTROPY_COEF * entropy

    def evaluation(self):
        scores, ratios, lengths = self.held_out()
        kl = torch.stack([ratio.sum() for ratio in ratios])
        found = {"score": scores, "kl": kl, "reward": scores - KL_COEF * kl, "answer_length": lengths}
        return {name: values.mean().item() for name, values in found.items()}


def gae(rewards, values, lam):
    """Advantages of an answer's tokens; the value after its end is 0."""
    found, advantage, next_value = [], 0.0, 0.0
    for reward, value in zip(rewards.flip(0), values.flip(0), strict=True):
        advantage = reward + GAMMA * next_value - value + GAMMA * lam * advantage
        next_value = value
        found.insert(0, advantage)
    return torch.stack(found)


class Grpo(Online):
    """grpo (Shao et al. 2024, eq. 3): the advantage is an answer's reward, normalized over its prompt's answers; KL is in the loss.

    As in trl (1.16), the KL estimate is weighted by its token's ratio, which makes it unbiased (DeepSeek-V3.2, section 3.1).
    """

    def learnt_from(self, answers):
        rewards = torch.tensor([reward for *_, reward in answers]).reshape(-1, GROUP)
        advantages = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)
        both = [[answer_log_probs(model, p, a) for p, a, _ in answers] for model in (self.model, self.reference)]
        return [(p, a, *rest) for (p, a, _), *rest in zip(answers, *both, advantages.flatten(), strict=True)]

    def token_losses(self, prompt, answer, old, of_reference, advantage):
        log_p = answer_log_probs(self.model, prompt, answer)
        return self.clipped(log_p, old, advantage) + BETA * torch.exp(log_p - old) * k3(log_p - of_reference)

    def evaluation(self):
        rewards, ratios, lengths = self.held_out()
        return {
            "reward": rewards.mean().item(),
            "completions/mean_length": lengths.mean().item(),
            "kl": k3(torch.cat(ratios)).mean().item(),
        }


def k3(log_ratio):
    """An estimate of the KL divergence for each token, never negative (Schulman 2020)."""
    return torch.exp(-log_ratio) - 1 + log_ratio


TASKS = {"pt": Supervised, "sft": Supervised, "rm": Reward, "dpo": Preference, "kto": Judged, "ppo": Ppo, "grpo": Grpo}
