"""trl's head gives the model's own loss and gradients, also if head or embeddings are trained or adapted."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from llmmod.config.schema.model import LoraConf
from llmmod.models.adapters.setup import setup_lora

WAYS = {
    "the head whole": {"modules_to_save": ["lm_head"]},
    "head and embeddings whole": {"modules_to_save": ["lm_head", "embed_tokens"]},
    "adapters on the embeddings": {"target_modules": ["embed_tokens", "q_proj"]},
    "some tokens": {"trainable_token_indices": [5, 6, 7, 50]},
    "the head in float32": {"modules_to_save": ["lm_head"], "upcast_head": True},
}


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("way", WAYS)
def test_it_is_the_plain_loss(toy_trainer, toy_splits, tiny_tokenizer, way, tied):
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "initializer_range": 0.2}
    torch.manual_seed(0)
    dtype = torch.bfloat16 if way == "the head in float32" else torch.float32
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tiny_tokenizer), tie_word_embeddings=tied, **sizes)).to(dtype)
    adapted = setup_lora(model, LoraConf(**{"name": "lora", "task_type": "CAUSAL_LM", "r": 4, "target_modules": ["q_proj"], **WAYS[way]}))
    trained = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    for p in trained.values():
        torch.nn.init.normal_(p, std=0.3)
    batch = {name: torch.tensor([toy_splits.train[0][name]]) for name in ("input_ids", "labels")}
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    trainer = toy_trainer(model=adapted, eval_strategy="no", eval_on_start=False)

    def gradients(loss):
        adapted.zero_grad()
        loss.backward()
        return loss.detach(), {name: p.grad.clone() for name, p in trained.items() if p.grad is not None}

    fused, plain = gradients(trainer.compute_loss(adapted.train(), dict(batch))), gradients(adapted(**batch).loss)
    # In 16 bits, the gradient that reaches the layers is rounded.
    near = {"rtol": 2e-2, "atol": 2e-3} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-6}
    torch.testing.assert_close(fused[0], plain[0], rtol=1e-5, atol=1e-6)
    assert fused[1].keys() == plain[1].keys()
    for name, gradient in plain[1].items():
        torch.testing.assert_close(fused[1][name], gradient, **near, msg=lambda text, name=name: f"{name}: {text}")
