"""The losses and advantages of stage grpo against slow formulas in float64, and against trl's own trainer."""

from __future__ import annotations

from typing import NamedTuple

import geometry
import numpy as np
import pytest
import torch

from llmmod.trainers.reference import initial_weights

PROMPTS, ANSWERS = (3, 9, 5, 1), (4, 1, 6, 2)  # tokens
BETA, EPSILON, MOST = 0.1, 0.2, 8


class Micro(NamedTuple):
    """A micro-batch in trl's format, and its values that the oracles need."""

    inputs: dict[str, torch.Tensor]
    prompts: list[list[int]]
    answers: list[list[int]]


@pytest.fixture
def micro():
    """Four answers, padded as in trl. The policy has changed since they were sampled, so that some tokens are clipped."""
    generator = torch.Generator().manual_seed(0)

    def ids(lengths):
        return [torch.randint(5, 400, (length,), generator=generator).tolist() for length in lengths]

    prompts, answers = ids(PROMPTS), ids(ANSWERS)
    wide, long = max(PROMPTS), max(ANSWERS)
    mask = torch.tensor([[1] * len(a) + [0] * (long - len(a)) for a in answers])
    before = torch.randn(mask.shape, generator=generator, dtype=torch.float64)
    inputs = {
        "prompt_ids": torch.tensor([[0] * (wide - len(p)) + p for p in prompts]),
        "prompt_mask": torch.tensor([[0] * (wide - len(p)) + [1] * len(p) for p in prompts]),
        "completion_ids": torch.tensor([a + [0] * (long - len(a)) for a in answers]),
        "completion_mask": mask,
        "advantages": torch.tensor([1.0, -0.5, 0.7, -1.2], dtype=torch.float64),
        "num_items_in_batch": torch.tensor(2 * sum(ANSWERS)),  # in two micro-batches
        "old_per_token_logps": 0.3 * before,
        "ref_per_token_logps": 0.5 * before.flip(0),
    }
    return Micro(inputs, prompts, answers)


def log_probs(model, micro):
    """The log-probabilities of each answer's tokens, each row alone, without padding."""
    found = []
    for prompt, answer in zip(micro.prompts, micro.answers, strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + answer])).logits[0].numpy()[len(prompt) - 1 : -1]
        log_p = logits - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True)) - logits.max(-1, keepdims=True)
        found.append(log_p[np.arange(len(answer)), answer])
    return found


def token_losses(name, level, micro, now):
    """Each token's loss, by answer, from the papers' equations with each ratio, clip and KL computed separately."""
    found = []
    for row, new in enumerate(now):
        old, ref = (micro.inputs[key][row, : len(new)].numpy() for key in ("old_per_token_logps", "ref_per_token_logps"))
        gain, logs = micro.inputs["advantages"][row].item(), new - old
        ratio = np.exp(np.full_like(logs, logs.mean()) if level == "sequence" else logs)
        if name == "cispo":  # MiniMax-M1 2025, eq. 4
            loss = -np.minimum(ratio, EPSILON) * gain * new
        elif name == "sapo":  # Gao et al. 2025, with the temperatures 1 and 1.05
            heat = 1.0 if gain > 0 else 1.05
            loss = -gain * 4 / heat / (1 + np.exp(-heat * (ratio - 1)))
        else:  # Shao et al. 2024, eq. 3
            loss = -np.minimum(ratio * gain, np.clip(ratio, 1 - EPSILON, 1 + EPSILON) * gain)
        kl = np.exp(ref - new) - (ref - new) - 1  # Schulman's k3
        found.append(loss + BETA * kl * ratio)  # the ratio: `use_bias_correction_kl`
    return found


def averaged(name, losses):
    """A micro-batch's part of the loss of a step with two micro-batches."""
    tokens = sum(map(len, losses))
    total = sum(loss.sum() for loss in losses)
    return {
        "grpo": np.mean([loss.mean() for loss in losses]) / 2,
        "sapo": np.mean([loss.mean() for loss in losses]) / 2,
        "bnpo": total / tokens / 2,
        "dr_grpo": total / (len(losses) * MOST) / 2,
        "dapo": total / (2 * tokens),
        "cispo": total / (2 * tokens),
        "luspo": total / len(losses) / 2,
    }[name]


CASES = [
    ("grpo", "token"), ("grpo", "sequence"), ("bnpo", "token"), ("dr_grpo", "token"), ("dapo", "token"), ("cispo", "token"),
    ("sapo", "token"), ("luspo", "sequence"),
]  # fmt: skip


@pytest.fixture
def trainer(grpo_trainer, tiny_llama):
    """A trainer in the middle of a step of two micro-batches, in float64."""
    made = grpo_trainer(tiny_llama.double(), beta=BETA, max_completion_length=MOST)
    made._set_reference(known=True)
    made.current_gradient_accumulation_steps = 2
    made.model.train()
    return made


@pytest.mark.parametrize(("name", "level"), CASES)
def test_the_loss_is_that_of_the_formula(trainer, micro, name, level):
    trainer.loss_type, trainer.importance_sampling_level = name, level
    expected = averaged(name, token_losses(name, level, micro, log_probs(trainer.model, micro)))
    rel = 1e-6 if name == "sapo" else 1e-9  # trl's temperatures are float32
    assert trainer.compute_loss(trainer.model, micro.inputs).item() == pytest.approx(expected, rel=rel)


@pytest.fixture
def of_trl(tiny_llama, tiny_tokenizer, toy_prompts, tmp_path):
    """A function: model -> trl's own trainer."""
    from trl import GRPOConfig, GRPOTrainer

    def make(model):
        sizes = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "num_generations": 4, "max_completion_length": MOST}
        args = GRPOConfig(str(tmp_path / "trl"), use_cpu=True, bf16=False, report_to="none", gradient_checkpointing=False, **sizes)
        made = GRPOTrainer(model, lambda **_: [0.0], args, train_dataset=toy_prompts[0], processing_class=tiny_tokenizer)
        made.beta, made.current_gradient_accumulation_steps = BETA, 2
        return made

    return make


def test_loss_and_gradient_are_those_of_trl(grpo_trainer, of_trl, micro, tiny_llama):
    """In float32, every loss_type and an entropy bonus; trl's rows are padded on the left, ours on the right."""
    ours = grpo_trainer(beta=BETA, max_completion_length=MOST)
    ours._set_reference(known=True)
    ours.current_gradient_accumulation_steps = 2
    theirs = of_trl(tiny_llama)
    inputs = {name: value.float() if value.is_floating_point() else value for name, value in micro.inputs.items()}
    for name, level in [*CASES, ("vespo", "token")]:
        found = []
        for trainer in (ours, theirs):
            trainer.loss_type, trainer.importance_sampling_level, trainer.model = name, level, tiny_llama.train()
            trainer.entropy_coef, trainer._entropy_bonus_enabled = 0.2, True
            tiny_llama.zero_grad()
            loss = trainer._compute_loss(tiny_llama, inputs)
            loss.backward()
            found.append((loss.item(), {key: p.grad.double().clone() for key, p in tiny_llama.named_parameters()}))
        assert found[0][0] == pytest.approx(found[1][0], rel=1e-5), name
        assert geometry.apart(found[0][1], found[1][1]) < 1e-5, name


def scored(scores):
    return lambda answers: torch.tensor(scores, dtype=torch.float32)


@pytest.fixture
def advantages(grpo_trainer, toy_prompts):
    """A function: scorers -> the advantages of two groups of four answers."""

    def of(scorers, **changes):
        trainer = grpo_trainer(scorers=scorers, **changes)
        trainer.model.train()
        rows = [toy_prompts[0][number] for number in (0, 7) for _ in range(4)]
        return trainer._generate_and_score_completions(rows)["advantages"].numpy()

    return of


ONE, OTHER = [1.0, 2.0, 3.0, 6.0, 5.0, 5.0, 5.0, 5.0], [0.0, 1.0, 0.0, 1.0, 2.0, 0.0, 0.0, 4.0]


def within(groups, spread=1e-4):
    return (groups - groups.mean(1, keepdims=True)) / (groups.std(1, ddof=1, keepdims=True) + spread)


def test_an_answer_is_compared_with_the_others_to_its_prompt(advantages):
    groups = np.array(ONE).reshape(2, 4)
    assert advantages({"one": scored(ONE)}) == pytest.approx(within(groups).ravel(), abs=1e-5)
    assert advantages({"one": scored(ONE)})[4:] == pytest.approx(0.0)  # all alike
    centred = (groups - groups.mean(1, keepdims=True)).ravel()
    assert advantages({"one": scored(ONE)}, scale_rewards="none") == pytest.approx(centred, abs=1e-5)
    assert advantages({"one": scored(ONE)}, scale_rewards="batch") == pytest.approx(centred / (np.std(ONE, ddof=1) + 1e-4), abs=1e-5)


def test_several_rewards_by_their_weights(advantages):
    scorers, weights = {"one": scored(ONE), "other": scored(OTHER)}, {"other": 0.5}
    together = (np.array(ONE) + 0.5 * np.array(OTHER)).reshape(2, 4)
    assert advantages(scorers, reward_weights=weights) == pytest.approx(within(together).ravel(), abs=1e-5)
    each = within(np.array(ONE).reshape(2, 4)).ravel() + 0.5 * within(np.array(OTHER).reshape(2, 4)).ravel()
    expected = (each - each.mean()) / (each.std(ddof=1) + 1e-4)
    found = advantages(scorers, reward_weights=weights, multi_objective_aggregation="normalize_then_sum")
    assert found == pytest.approx(expected, abs=1e-4)


def test_an_answer_without_a_score_has_an_advantage_of_zero(advantages):
    found = advantages({"one": scored([1.0, 2.0, torch.nan, 6.0, *ONE[4:]])})
    kept = np.array([[1.0, 2.0, 6.0]])
    assert found[2] == 0.0
    assert found[[0, 1, 3]] == pytest.approx(within(kept).ravel(), abs=1e-5)


def test_log_probs_before_and_after_are_those_of_rows_without_padding(grpo_trainer, toy_prompts, tiny_llama):
    """Answers are sampled in batches padded on the left and trained in rows padded on the right."""
    trainer = grpo_trainer(num_iterations=2, beta=0.1, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    trainer.initial = initial_weights(tiny_llama)
    trainer._set_reference(known=True)
    trainer.model.train()
    rows = [toy_prompts[0][number] for number in (0, 5) for _ in range(4)]
    made = trainer._generate_and_score_completions(rows)
    mask = made["completion_mask"].bool()
    answers = [ids[kept].tolist() for ids, kept in zip(made["completion_ids"], mask, strict=True)]
    expected = log_probs(tiny_llama, Micro({}, [row["prompt_ids"] for row in rows], answers))
    assert made["old_per_token_logps"][mask].numpy() == pytest.approx(np.concatenate(expected), abs=1e-5)
    assert torch.equal(made["ref_per_token_logps"], made["old_per_token_logps"])
    del made["num_items_in_batch"]
    half = {name: value[:4] for name, value in made.items()} | {"num_items_in_batch": mask.sum()}
    trainer.current_gradient_accumulation_steps = 4
    trainer.compute_loss(tiny_llama, half)
    assert trainer._metrics["train"]["clip_ratio/region_mean"] == [0.0]
    assert trainer._metrics["train"]["kl"][0] == pytest.approx(0.0, abs=1e-9)
