"""NEFTune's noise has the bound alpha / sqrt(L d), where L is the sequence's own length, not the batch's width or the vocabulary's size."""

from __future__ import annotations

import pytest
import torch

from llmmod.trainers.base import noisy_embeddings, sequence_lengths

ALPHA = 5.0
CHANNELS = 32  # of tests/conftest.py's llama


def noise(model, inputs, alpha=ALPHA):
    """The noise in the embeddings, [batch, seq, channels]."""
    embed = model.get_input_embeddings()
    plain = embed(inputs["input_ids"]).detach()
    with noisy_embeddings(model, inputs, alpha=alpha):
        return embed(inputs["input_ids"]).detach() - plain


def padded(*lengths):
    width = max(lengths)
    mask = torch.tensor([[1] * n + [0] * (width - n) for n in lengths])
    return {"input_ids": torch.full((len(lengths), width), 7), "attention_mask": mask}


def test_each_examples_noise_has_the_bound_of_its_own_length(tiny_llama):
    found = noise(tiny_llama.train(), padded(200, 50))
    for row, length in ((0, 200), (1, 50)):
        bound = ALPHA / (length * CHANNELS) ** 0.5
        real = found[row, :length]
        assert real.abs().max() <= bound
        assert real.abs().max() > 0.99 * bound  # the largest of more than a thousand draws
        assert real.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)  # a uniform distribution
        assert real.mean().item() == pytest.approx(0, abs=0.1 * bound)


def test_padding_has_none_and_changes_nothing(tiny_llama):
    assert torch.all(noise(tiny_llama.train(), padded(200, 50))[1, 50:] == 0)
    alone, beside = noise(tiny_llama, padded(50)), noise(tiny_llama, padded(50, 200))
    assert alone.abs().max().item() == pytest.approx(beside[0, :50].abs().max().item(), rel=0.02)


def test_examples_in_one_row_have_their_own(tiny_llama):
    inputs = {"input_ids": torch.full((1, 250), 7), "cu_seq_lens_q": torch.tensor([0, 200, 250], dtype=torch.int32)}
    assert sequence_lengths(inputs).tolist() == [[200] * 200 + [50] * 50]
    found = noise(tiny_llama.train(), inputs)
    assert found[0, :200].abs().max().item() == pytest.approx(ALPHA / (200 * CHANNELS) ** 0.5, rel=0.02)
    assert found[0, 200:].abs().max().item() == pytest.approx(ALPHA / (50 * CHANNELS) ** 0.5, rel=0.02)


def test_without_a_mask_the_row_is_the_sequence():
    assert sequence_lengths({"input_ids": torch.zeros(2, 3)}).tolist() == [[3, 3, 3], [3, 3, 3]]


def test_where_no_gradient_is_taken_nothing_is_added(tiny_llama):
    """For example for a reference, and for kto's mismatched pairs, whose rows have other lengths than the trained ones."""
    tiny_llama.train()
    embed, others = tiny_llama.get_input_embeddings(), torch.full((2, 31), 7)
    with noisy_embeddings(tiny_llama, padded(20, 10), alpha=ALPHA), torch.no_grad():
        assert torch.equal(embed(others), embed.weight[others])


@pytest.mark.parametrize("off", ["not asked for", "evaluating"])
def test_off_nothing_is_added(tiny_llama, off):
    found = noise(tiny_llama.train(off == "not asked for"), padded(20, 10), alpha=None if off == "not asked for" else ALPHA)
    assert torch.all(found == 0)
    assert not tiny_llama.get_input_embeddings()._forward_hooks


def test_a_trainer_adds_it_once_and_in_training_alone(toy_trainer, tiny_llama, monkeypatch):
    """The library's own hook would add noise a second time."""
    hooks = []
    embed = tiny_llama.get_input_embeddings()
    forward = embed.forward
    monkeypatch.setattr(embed, "forward", lambda ids: hooks.append((len(embed._forward_hooks), embed.training)) or forward(ids))
    trainer = toy_trainer(neftune_noise_alpha=ALPHA, max_steps=2, eval_strategy="epoch")
    trainer.train()
    assert (1, True) in hooks
    assert set(hooks) == {(1, True), (0, False)}


def test_an_adapted_model_has_it_too(toy_trainer, tiny_lora):
    losses = []
    for alpha in (None, ALPHA):
        trainer = toy_trainer(model=tiny_lora, neftune_noise_alpha=alpha, max_steps=1, eval_strategy="no", learning_rate=0.0)
        losses.append(trainer.train().training_loss)
    assert losses[0] != losses[1]
