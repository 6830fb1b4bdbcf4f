"""What the tokenizer code did that came with 2023's checkpoints, as data, and how a checkpoint of each is recognised.

Sources: tokenization_chatglm.py (THUDM/chatglm2-6b), tokenization_baichuan.py (baichuan-inc), tokenization_internlm.py (internlm),
tokenization_qwen.py (Qwen), tokenization_llama.py (transformers 4.33), all as they worked under transformers 4.33.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MARK = "original_tokenizer"  # in tokenizer_config.json of a directory that llmmod saved and stock transformers can't read exactly


@dataclass(frozen=True)
class Original:
    """A tokenizer's ways.

    Args:
        name: for messages, and under `MARK`.
        classes: names of its class in tokenizer_config.json.
        model_types: in config.json, where there is no tokenizer_config.json.
        file: its vocabulary.
        own: its special tokens, unless tokenizer_config.json has others.
        adds_bos: whether a text begins with bos, unless tokenizer_config.json says otherwise.
        swallows_spaces: whether special tokens in a text swallow the white space beside them.
        appended: special tokens that follow the vocabulary's pieces.
        prefix: those of them that a text begins with. A pair of texts then ends with eos.
        arguments: fields of the transformers class.
    """

    name: str
    classes: tuple[str, ...]
    model_types: tuple[str, ...]
    file: str = "tokenizer.model"
    own: Mapping[str, str] = field(default_factory=lambda: {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})
    adds_bos: bool = False
    swallows_spaces: bool = False
    appended: tuple[str, ...] = ()
    prefix: tuple[str, ...] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)


CHATGLM2 = Original(
    "ChatGLM2",
    classes=("ChatGLMTokenizer",),
    model_types=("chatglm",),
    own={"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"},
    appended=("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop"),
    prefix=("[gMASK]", "sop"),
    # It never reads a special token in a text; were "eop" one, "people" would be broken up.
    arguments={"padding_side": "left", "split_special_tokens": True},
)
BAICHUAN = Original("Baichuan", classes=("BaichuanTokenizer", "BaiChuanTokenizer"), model_types=("baichuan",))
INTERNLM = Original("InternLM", classes=("InternLMTokenizer",), model_types=("internlm",), adds_bos=True, swallows_spaces=True)
QWEN = Original(
    "Qwen",
    classes=("QWenTokenizer",),
    model_types=("qwen",),
    file="qwen.tiktoken",
    own={"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
)
LLAMA = Original("LLaMA", classes=("LlamaTokenizer", "LlamaTokenizerFast"), model_types=("llama",), adds_bos=True)

ORIGINALS = (CHATGLM2, BAICHUAN, INTERNLM, QWEN, LLAMA)


def original_of(tokenizer_config: Mapping[str, Any], config: Mapping[str, Any]) -> Original | None:
    """The tokenizer that a checkpoint was made with, None where it is none of 2023's.

    Args:
        tokenizer_config: its tokenizer_config.json, empty where there is none.
        config: its config.json, likewise.
    """
    marked = tokenizer_config.get(MARK)
    named = tokenizer_config.get("tokenizer_class") or config.get("tokenizer_class")
    for original in ORIGINALS:
        by_type = named is None and config.get("model_type") in original.model_types
        if marked == original.name or (marked is None and (named in original.classes or by_type)):
            return original
    return None
