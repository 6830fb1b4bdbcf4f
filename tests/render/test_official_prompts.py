"""Shipped renders give the models' official prompts, token for token.

Tests read real tokenizers where the development machine has them, and are skipped elsewhere.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmmod.render.conversation import Conversation, Message
from llmmod.render.encode import encode, encode_prompt
from llmmod.render.template import Template

HERE = Path(__file__).parent
TOKENIZERS = HERE.parents[2] / "shared" / "oracles" / "tokenizers"
ORACLE = json.loads((HERE / "oracle_prompts.json").read_text(encoding="utf-8"))
TEXTS = ORACLE["texts"]
SENTENCEPIECE = HERE / "sentencepiece"


def original(name, file):
    path = TOKENIZERS / name / file
    if not path.exists():
        pytest.skip(f"{name}'s own tokenizer is not on this machine")
    return path


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """A function: a vocabulary file, the model_type of its checkpoint -> the tokenizer of such a checkpoint, loaded as in a run."""
    from llmmod import load_tokenizer

    def loaded(file, model_type):
        path = tmp_path_factory.mktemp(model_type)
        (path / ("qwen.tiktoken" if model_type == "qwen" else "tokenizer.model")).symlink_to(file)
        (path / "config.json").write_text(json.dumps({"model_type": model_type}))
        return load_tokenizer(str(path))

    return loaded


@pytest.fixture(scope="module")
def llama2(load):
    tokenizer = load(original("llama2", "tokenizer.model"), "llama")
    tokenizer.add_tokens(["<|end_of_turn|>"])  # openchat's is LLaMA-2's with one more token
    return tokenizer


@pytest.fixture(scope="module")
def llama2_stock():
    from transformers import LlamaTokenizer

    return LlamaTokenizer.from_pretrained(original("llama2", "tokenizer.model").parent, legacy=True)


@pytest.fixture(scope="module")
def internlm(load):
    return load(original("internlm", "tokenizer.model"), "internlm")


@pytest.fixture(scope="module")
def qwen(load):
    return load(original("qwen", "qwen.tiktoken"), "qwen")


@pytest.fixture(scope="module")
def chatglm2(load):
    return load(SENTENCEPIECE / "chatglm2_tiny.model", "chatglm")


@pytest.fixture(scope="module")
def baichuan2(load):
    return load(SENTENCEPIECE / "baichuan2_tiny.model", "baichuan")


def pieces(name, text):
    """The ids that sentencepiece itself gives."""
    from sentencepiece import SentencePieceProcessor

    return SentencePieceProcessor(model_file=str(SENTENCEPIECE / f"{name}.model")).encode(text)


def chat(system, *texts):
    said = [Message("user" if index % 2 == 0 else "assistant", text) for index, text in enumerate(texts)]
    return Conversation([Message("system", system)] * (system is not None) + said)


def two_rounds(system):
    return chat(system, TEXTS["U1"], TEXTS["A1"], TEXTS["U2"])


CASES = [
    ("llama2", "llama2", None, "llama2"),
    ("llama2", "llama2", TEXTS["SYS"], "llama2_system"),
    ("llama2", "llama2_stock", None, "llama2"),
    ("llama2", "llama2_stock", TEXTS["SYS"], "llama2_system"),
    ("chatml", "qwen", None, "qwen_system"),  # Qwen's default system text is the render's
    ("chatml", "qwen", TEXTS["SYS"], "qwen_system"),
    ("chatml", "qwen", "", "qwen_empty_system"),
    ("intern", "internlm", None, "internlm"),
    ("intern", "internlm", TEXTS["SYS"], "internlm_system"),
]


@pytest.mark.parametrize(("render", "name", "system", "ids"), CASES, ids=[f"{name}-{ids}" for _, name, _, ids in CASES])
def test_the_second_rounds_prompt_is_the_official_one(request, shipped, render, name, system, ids):
    tokenizer = request.getfixturevalue(name)
    template = Template(tokenizer=tokenizer, **shipped(render))
    assert encode_prompt(template.prompt(two_rounds(system)), tokenizer) == ORACLE["ids"][ids]


def test_training_sees_the_official_prompt_and_the_answer_alone_is_trained(shipped, qwen):
    template = Template(tokenizer=qwen, **shipped("chatml"))
    prompt = ORACLE["ids"]["qwen_system"]
    [(ids, labels)] = encode(template.examples(chat(None, TEXTS["U1"], TEXTS["A1"], TEXTS["U2"], "2"), mask_prompt=True), qwen)
    assert ids == [*prompt, *qwen("2")["input_ids"], qwen.convert_tokens_to_ids("<|im_end|>")]
    answer = qwen(TEXTS["A1"])["input_ids"] + [qwen.convert_tokens_to_ids("<|im_end|>")]
    assert [label for label in labels if label != -100] == answer + ids[len(prompt) :]


@pytest.mark.parametrize(
    ("render", "name", "system", "ids"),
    [
        ("chatml", "qwen", TEXTS["SYS"], "qwen_system_12345+234=？"),
        ("intern", "internlm", TEXTS["INTERNLM_META"], "internlm_meta_12345+234=？"),
    ],
    ids=["qwen", "internlm"],
)
def test_the_prompt_of_one_question_is_the_official_one(request, shipped, render, name, system, ids):
    tokenizer = request.getfixturevalue(name)
    template = Template(tokenizer=tokenizer, **shipped(render))
    assert encode_prompt(template.prompt(chat(system, "12345+234=？")), tokenizer) == ORACLE["ids"][ids]


def test_openchats_prompt_is_that_of_its_readme(shipped, llama2):
    template = Template(tokenizer=llama2, **{**shipped("openchat"), "bos": "once"})
    assert encode_prompt(template.prompt(chat(None, "Hello", "Hi", "How are you today?")), llama2) == ORACLE["ids"]["openchat"]


def test_chatglm2s_prompt_is_gmask_sop_and_the_official_string_encoded_as_one(shipped, chatglm2):
    template = Template(tokenizer=chatglm2, **shipped("chatglm2"))
    whole = pieces("chatglm2_tiny", ORACLE["strings"]["chatglm2"])
    prompt = encode_prompt(template.prompt(two_rounds(None)), chatglm2)
    assert prompt == [3001, 3003, *whole]  # after 3,000 pieces and [MASK]
    assert prompt == chatglm2(ORACLE["strings"]["chatglm2"]).input_ids  # the ids of build_prompt's text in the original's `chat`


@pytest.mark.parametrize(("system", "segments"), [(None, "baichuan"), (TEXTS["SYS"], "baichuan_system")])
@pytest.mark.parametrize(("render", "user", "assistant"), [("baichuan", 102, 103), ("baichuan2", 106, 107)])
def test_baichuans_prompt_is_the_official_segments(shipped, baichuan2, render, user, assistant, system, segments):
    template = Template(tokenizer=baichuan2, **shipped(render))
    role = {195: f"<reserved_{user}>", 196: f"<reserved_{assistant}>"}  # the numbers of these names are their ids in the real vocabulary
    expected = []
    for segment in ORACLE["segments"][segments]:
        expected += pieces("baichuan2_tiny", role.get(segment, segment))
    assert encode_prompt(template.prompt(two_rounds(system)), baichuan2) == expected


def test_baichuan2_trains_eos_where_the_user_speaks_again_as_its_fine_tune_py_does(shipped, baichuan2):
    template = Template(tokenizer=baichuan2, **shipped("baichuan2"))
    [(ids, labels)] = encode(template.examples(chat(None, TEXTS["U1"], TEXTS["A1"], TEXTS["U2"], "2")), baichuan2)
    user, assistant, eos = (baichuan2.convert_tokens_to_ids(token) for token in ("<reserved_106>", "<reserved_107>", "</s>"))
    expected, trained = [], False
    for token in ids:  # fine-tune.py: of a user's turn, only eos at its first token is trained; of an assistant's, all but the first token
        trained = (trained or token == assistant) and token != user
        expected.append(eos if token == user else token if trained and token != assistant else -100)
    assert ids[-1] == eos
    assert labels[1:] == expected[1:]  # the first label is never used, since there isn't a token before it


@pytest.mark.parametrize("system", ["You are a helpful AI assistant named SmolLM, trained by Hugging Face", "", "你是助手。"])
def test_chatml_gives_the_ids_of_smollm2s_own_chat_template(shipped, smollm2, system):
    template = Template(tokenizer=smollm2, **shipped("chatml"))
    conversation = chat(system, "你好", "你好！很高兴见到你。", " What is 1+1?\n", "2 😀 ", "Thanks")
    messages = [{"role": message.role, "content": message.content} for message in conversation.messages]
    own = smollm2.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert encode_prompt(template.prompt(conversation), smollm2) == own


def test_an_answer_that_begins_with_a_space_stays_apart_from_the_prompt_it_was_generated_after(shipped, smollm2):
    # In one string, the line break and the space before a digit are one token; but generation began after the line break.
    template = Template(tokenizer=smollm2, **shipped("chatml"))
    asked = encode_prompt(template.prompt(chat("S", "1+1?")), smollm2)
    assert encode_prompt(template.prompt(chat("S", "1+1?", " 2", "Sure?")), smollm2)[: len(asked)] == asked
    assert smollm2("assistant\n 2")["input_ids"][:3] != smollm2("assistant\n")["input_ids"]
