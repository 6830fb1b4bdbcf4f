"""What layouts made after Llama share with it."""

from __future__ import annotations

REQUIRED = {
    name: (name,)
    for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "rms_norm_eps", "hidden_act")
}
_SAME = "self_attn.o_proj mlp.gate_proj mlp.up_proj mlp.down_proj input_layernorm post_attention_layernorm"
IN_LAYER: dict[str, tuple[str, ...]] = {name: (name,) for name in _SAME.split()}
OUTSIDE = {name: name for name in ("model.embed_tokens", "model.norm", "lm_head")}
