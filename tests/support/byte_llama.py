"""A tiny random Llama whose tokens are bytes, as a checkpoint in transformers' format, written quickly and without torch.

A text has as many tokens as bytes in UTF-8, token n is byte n, and the four special tokens are 256 to 259, so that a reader can
check ids by hand. Nothing here comes from llmmod.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

ENDOFTEXT, START, END, PAD = 256, 257, 258, 259
_SPECIAL = {"<|endoftext|>": ENDOFTEXT, "<|im_start|>": START, "<|im_end|>": END, "<|pad|>": PAD}
_LAYERS, _HEADS, _KEY_HEADS = 2, 4, 2
# Large enough that positions matter, and that an adapter can learn something with frozen head and embeddings.
_SPREAD, _SPREAD_OF_TOKENS = 0.125, 0.25


def write_byte_llama(directory, *, eos="<|im_end|>", positions=2048, width=64, untied=False, template=None, seed=7):
    """Write model and tokenizer; returns the directory.

    Args:
        directory: the directory to create.
        eos: the end token in the model's config.
        positions: the model's maximum number of tokens.
        width: channels; about 100,000 weights with 64, 30,000 with 32.
        untied: whether the output layer has its own weights.
        template: the tokenizer's chat template.
        seed: the seed of the weights.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    _tokenizer().save(str(directory / "tokenizer.json"))
    about_tokens = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": eos,
        "pad_token": "<|pad|>",
        "additional_special_tokens": list(_SPECIAL),
        "clean_up_tokenization_spaces": False,
        "model_max_length": positions,
    }
    if template is not None:
        about_tokens["chat_template"] = template
    ends = {"bos_token_id": None, "eos_token_id": _SPECIAL[eos], "pad_token_id": PAD}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 256 + len(_SPECIAL),
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": _LAYERS,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": _KEY_HEADS,
        "hidden_act": "silu",
        "max_position_embeddings": positions,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": not untied,
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": "float32",
        **ends,
    }
    for name, content in (("tokenizer_config", about_tokens), ("config", config), ("generation_config", ends)):
        (directory / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    save_file(_weights(width, untied, seed), str(directory / "model.safetensors"), metadata={"format": "pt"})
    return directory


def text(ids):
    """The text of ids, with special tokens; bytes that are not text are replaced."""
    names = {number: name.encode() for name, number in _SPECIAL.items()}
    return b"".join(names.get(token) or bytes([token]) for token in ids).decode(errors="replace")


def _tokenizer():
    tokenizer = Tokenizer(models.BPE(vocab={_letter(byte): byte for byte in range(256)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in _SPECIAL])
    return tokenizer


def _letter(byte):
    """The letter for a byte in GPT-2's alphabet: the same character if it is visible, else one from 256 on, in order."""
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [other for other in range(256) if other not in seen]
    return chr(byte) if byte in seen else chr(256 + hidden.index(byte))


def _weights(width, untied, seed):
    draw, inner, keys = np.random.RandomState(seed), 2 * width, width // _HEADS * _KEY_HEADS
    shapes = {"model.embed_tokens": (256 + len(_SPECIAL), width)}
    for layer in range(_LAYERS):
        own = f"model.layers.{layer}"
        shapes |= {
            f"{own}.self_attn.q_proj": (width, width),
            f"{own}.self_attn.k_proj": (keys, width),
            f"{own}.self_attn.v_proj": (keys, width),
            f"{own}.self_attn.o_proj": (width, width),
            f"{own}.mlp.gate_proj": (inner, width),
            f"{own}.mlp.up_proj": (inner, width),
            f"{own}.mlp.down_proj": (width, inner),
            f"{own}.input_layernorm": (width,),
            f"{own}.post_attention_layernorm": (width,),
        }
    shapes["model.norm"] = (width,)
    if untied:
        shapes["lm_head"] = (256 + len(_SPECIAL), width)
    spread = {"model.embed_tokens": _SPREAD_OF_TOKENS, "lm_head": _SPREAD_OF_TOKENS}

    def drawn(name, shape):
        return np.ones(shape) if len(shape) == 1 else draw.normal(0, spread.get(name, _SPREAD), shape)

    return {f"{name}.weight": drawn(name, shape).astype(np.float32) for name, shape in shapes.items()}
