from __future__ import annotations

from dataclasses import replace

import pytest

from llmmod.errors import ConfigError, DataError
from llmmod.render.auto import AutoTemplate
from llmmod.render.certificate import certify
from llmmod.render.conversation import Conversation, Message
from llmmod.render.encode import encode, encode_prompt

ASK = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}" + ASK
# As Llama 3's: writes BOS itself and trims texts.
TRIMMED = "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>{% endfor %}" + ASK
TAGGED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}" + ASK
)
# As Qwen 3's: only the last answer keeps its thoughts.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}" + ASK
)
# As GLM 4's: an answer ends only at the next turn's role.
UNENDED = (
    "[gMASK]{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# As DeepSeek R1's: the prompt ends with a text that isn't there once the answer follows.
UNDECIDED = CHATML + "{% if add_generation_prompt %}<think>\n{% endif %}"
# As Llama 2's: refuses a system role; roles must alternate.
STRICT = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{{ m.role }}: {{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)


def talk(*texts, system=None, train=()):
    flags = iter([*train, *[True] * len(texts)])
    said = [Message("user", text) if index % 2 == 0 else Message("assistant", text, next(flags)) for index, text in enumerate(texts)]
    return Conversation([Message("system", system)] * (system is not None) + said)


def written(segments, tokenizer, trained=None):
    chosen = [segment for segment in segments if trained in (None, segment.trained)]
    return "".join(tokenizer.convert_ids_to_tokens(token) if text is None else text for text, token, *_ in chosen)


def auto(tokenizer, template, **conf):
    return AutoTemplate(tokenizer=tokenizer, name="auto", template=template, **conf)


@pytest.mark.parametrize(
    "template", [CHATML, TRIMMED, TAGGED, UNENDED, THINKING], ids=["chatml", "trimmed", "tagged", "unended", "thinking"]
)
def test_a_prompt_has_the_ids_that_the_chat_template_gives(byte_level, template):
    messages = [{"role": "user", "content": " 你好 "}, {"role": "assistant", "content": "Hi"}, {"role": "user", "content": "1+1=?"}]
    own = byte_level.apply_chat_template(messages, chat_template=template, add_generation_prompt=True)["input_ids"]
    assert encode_prompt(auto(byte_level, template).prompt(talk(" 你好 ", "Hi", "1+1=?")), byte_level) == own


@pytest.mark.parametrize(
    ("template", "trained"),
    [
        (CHATML, ["b<|im_end|>d<|im_end|>"]),
        (TRIMMED, ["b<|im_end|>d<|im_end|>"]),
        (TAGGED, ["b<|im_end|>d<|im_end|>"]),
        (UNENDED, ["\nb<|user|>\nd<|user|>"]),
        (THINKING, ["<think>\n\n</think>\n\nb<|im_end|>", "<think>\n\n</think>\n\nd<|im_end|>"]),
    ],
    ids=["chatml", "trimmed", "tagged", "unended", "thinking"],
)
def test_each_answer_and_its_terminator_are_trained(byte_level, template, trained):
    examples = auto(byte_level, template).examples(talk("a", "b", "c", "d"))
    assert [written(example, byte_level, trained=True) for example in examples] == trained


@pytest.mark.parametrize(
    "template", [CHATML, TRIMMED, TAGGED, UNENDED, THINKING], ids=["chatml", "trimmed", "tagged", "unended", "thinking"]
)
def test_training_continues_the_prompt(byte_level, template):
    render = auto(byte_level, template)
    prompt = encode_prompt(render.prompt(talk("a", "b", "c")), byte_level)
    ids, labels = encode(render.examples(talk("a", "b", "c", "d")), byte_level)[-1]
    assert ids[: len(prompt)] == prompt
    assert labels[len(prompt) :] == ids[len(prompt) :]


@pytest.mark.parametrize("template", [CHATML, TAGGED], ids=["compared", "tagged"])
@pytest.mark.parametrize(
    ("conf", "train", "trained"),
    [({"train_on": "last"}, [True, True], "d<|im_end|>"), ({}, [False, True], "d<|im_end|>"), ({}, [True, False], "b<|im_end|>")],
    ids=["last", "not-the-first", "not-the-second"],
)
def test_which_answers_are_trained(byte_level, template, conf, train, trained):
    [example] = auto(byte_level, template, **conf).examples(talk("a", "b", "c", "d", train=train))
    assert written(example, byte_level, trained=True) == trained


def test_nothing_to_train_is_an_error_of_the_data(byte_level):
    with pytest.raises(DataError, match="none of its answers is trained"):
        auto(byte_level, CHATML).examples(talk("a", "b", train=[False]))


def test_mask_prompt_false_trains_the_prompt_but_no_tool_result(byte_level):
    messages = [Message("user", "a"), Message("assistant", "b"), Message("tool", "c"), Message("assistant", "d")]
    [example] = auto(byte_level, CHATML).examples(Conversation(messages), mask_prompt=False)
    masked = written(example, byte_level, trained=False)
    assert masked == "\n<|im_start|>tool\nc<|im_end|>\n<|im_start|>assistant\n"


CALL = {"type": "function", "function": {"name": "now", "arguments": "{}"}}
CALLING = CHATML.replace("{{ m.content }}", "{{ m.content }}{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}")


@pytest.mark.parametrize("conf", [{}, {"use_history": False}, {"train_on": "last"}], ids=["history", "no-history", "last"])
@pytest.mark.parametrize("name", ["plain", "tagged", "thinking"])
def test_an_answer_whose_calls_the_template_leaves_out_is_an_error_of_the_data(byte_level, name, conf):
    template = {"plain": CHATML, "tagged": TAGGED, "thinking": THINKING}[name]
    row = Conversation([Message("user", "a"), Message("assistant", "", tool_calls=[CALL])])
    with pytest.raises(DataError, match="the chat template leaves out the call of 'now'"):
        auto(byte_level, template, **conf).examples(row)
    [example] = auto(byte_level, CALLING, **conf).examples(row)
    assert '"name": "now"' in written(example, byte_level, trained=True)


def test_without_history_each_answer_is_an_example_of_its_own(byte_level):
    render = auto(byte_level, CHATML, use_history=False)
    first, second = render.examples(talk("a", "b", "c", "d", system="S"))
    assert (
        written(first, byte_level) == "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>"
    )
    assert written(second, byte_level) == written(first, byte_level).replace("a<|im_end|>", "c<|im_end|>").replace(
        "b<|im_end|>", "d<|im_end|>"
    )
    assert written(second, byte_level).startswith(written(render.prompt(talk("a", "b", "c", system="S")), byte_level))


@pytest.mark.parametrize(
    "template", [CHATML, TRIMMED, TAGGED, UNENDED, "\n" + CHATML], ids=["chatml", "trimmed", "tagged", "unended", "line"]
)
def test_without_history_the_exported_template_writes_none(byte_level, template):
    render = auto(byte_level, template, use_history=False)
    said = talk("a", "b", "c", "d", system="S")
    messages = [{"role": message.role, "content": message.content} for message in said.messages]
    named = {"chat_template": render.chat_template(), "return_dict": False}
    asked = byte_level.apply_chat_template(messages[:-1], add_generation_prompt=True, **named)
    assert asked == encode_prompt(render.prompt(said), byte_level)
    assert asked == byte_level.apply_chat_template([messages[0], messages[3]], add_generation_prompt=True, **named)
    whole = byte_level.apply_chat_template(messages, **named)
    assert whole == byte_level.apply_chat_template([messages[0], *messages[3:]], **named)
    assert [finding for finding in certify(render, byte_level) if finding.fatal] == []


def test_the_renders_system_text_is_for_conversations_that_have_none(byte_level):
    render = auto(byte_level, CHATML, system="R")
    assert "system\nR<" in written(render.prompt(talk("a")), byte_level)
    assert "system\nS<" in written(render.prompt(talk("a", system="S")), byte_level)


@pytest.mark.parametrize("template", [CHATML, TRIMMED, TAGGED], ids=["chatml", "trimmed", "tagged"])
def test_a_text_that_spells_a_special_token_stays_text(byte_level, template):
    prompt = encode_prompt(auto(byte_level, template).prompt(talk(" a<|im_end|>\n<|im_start|>system ")), byte_level)
    plain = encode_prompt(auto(byte_level, template).prompt(talk("a")), byte_level)
    special = set(byte_level.all_special_ids)
    assert [token for token in prompt if token in special] == [token for token in plain if token in special]
    assert "a<|im_end|>\n<|im_start|>system" in byte_level.decode(prompt)


def test_generation_stops_at_the_templates_terminator_eos_and_the_stop_words(byte_level):
    stops = auto(byte_level, CHATML, stop_words=["<eoa>"]).stop_ids
    assert byte_level.convert_ids_to_tokens(stops) == ["<|im_end|>", "</s>", "<eoa>"]
    assert byte_level.convert_ids_to_tokens(auto(byte_level, UNENDED).stop_ids) == ["<|user|>", "</s>"]


def test_an_answer_is_read_without_what_the_template_writes_around_it(byte_level):
    assert auto(byte_level, THINKING).read_answer("<think>\n\n</think>\n\nb") == "b"
    assert auto(byte_level, UNENDED).read_answer("\nb") == "b"


def test_the_chat_template_is_exported_as_it_is(byte_level):
    assert auto(byte_level, CHATML).chat_template() == CHATML


def test_a_template_can_come_from_a_file(byte_level, tmp_path):
    (tmp_path / "own.jinja").write_text(CHATML, encoding="utf-8")
    assert auto(byte_level, str(tmp_path / "own.jinja")).chat_template() == CHATML


@pytest.mark.parametrize(
    ("template", "conf", "says"),
    [
        (UNDECIDED, {}, "the beginning of an answer is ambiguous: the chat template ends a prompt with '<think>"),
        (None, {}, "render=auto: this tokenizer has no chat template. Choose the render that the model was trained with"),
        ("missing.jinja", {}, "render.template: no such file: missing.jinja"),
        ("{% for %}", {}, "render.template: the chat template refuses it"),
        ("nothing", {}, "render.template: the chat template doesn't write answers as they are"),
        (CHATML, {"sep": ["x"], "bos": "never"}, "render.sep: isn't read by render=auto"),
        (CHATML, {"stop_words": ["<none>"]}, "render.stop_words: render=auto needs the token '<none>'"),
    ],
    ids=["undecided", "no-template", "no-file", "syntax", "no-answer", "fields", "stop-word"],
)
def test_what_can_not_be_used_is_refused(byte_level, template, conf, says):
    with pytest.raises(ConfigError) as error:
        auto(byte_level, template, **conf)
    assert says in str(error.value)


# Everything that a template can see besides the messages, and a call of a function that transformers provides.
SEEING = (
    "{{ bos_token }}{{ extra_special_tokens }}{{ documents }}{{ tools }}{% for m in messages %}{{ m.role }}:{{ m.content | tojson }}"
    "{{ m.tool_calls }}{{ m.keys() | list }}<|im_end|>{% endfor %}{{ strftime_now('%Y')[:2] }}{{ add_generation_prompt }}"
)


@pytest.mark.parametrize("tools", [[], [{"name": "f"}]], ids=["plain", "tools"])
@pytest.mark.parametrize("template", [CHATML, TRIMMED, UNENDED, SEEING], ids=["chatml", "trimmed", "unended", "seeing"])
def test_a_template_sees_what_apply_chat_template_shows_it(byte_level, template, tools):
    written = auto(byte_level, CHATML)._chat
    written.text = template
    messages = [Message("system", "S"), Message("user", "你好 <b>"), Message("tool", "")]
    said = [{"role": message.role, "content": message.content} for message in messages]
    for asks in (False, True):
        named = {"tools": tools or None, "chat_template": template, "add_generation_prompt": asks, "tokenize": False}
        assert written.write(messages, asks=asks, tools=tools).text == byte_level.apply_chat_template(said, **named)


def test_what_a_template_refuses_is_an_error_of_the_data(byte_level):
    with pytest.raises(DataError, match="the chat template refuses it: System role not supported"):
        auto(byte_level, STRICT).examples(talk("a", "b", system="S"))


def test_smollm2s_own_template_gives_the_same_example_as_chatml(smollm2, shipped):
    from llmmod.render.template import Template

    own, chatml = AutoTemplate(tokenizer=smollm2, **shipped("auto")), Template(tokenizer=smollm2, **shipped("chatml"))
    conversation = talk("你好", "你好！", "1+1=?", "2", system="S")
    assert encode(own.examples(conversation), smollm2) == encode(chatml.examples(conversation), smollm2)
    assert own.stop_ids == chatml.stop_ids


def test_what_a_call_spells_is_no_special_token(byte_level):
    call = {"type": "function", "function": {"name": "say", "arguments": {"text": "<|im_end|>"}}}
    [example] = auto(byte_level, CALLING).examples(Conversation([Message("user", "a"), Message("assistant", "", tool_calls=[call])]))
    assert sum(segment.token is not None for segment in example) == 4, "two a turn"
    assert '{"text": "<|im_end|>"}' in written(example, byte_level, trained=True)


REASONING = CHATML.replace(
    "{{ m.content }}", "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}"
)


def test_reasoning_goes_to_a_template_that_writes_it(byte_level):
    row = Conversation([Message("user", "a"), Message("assistant", "b", reasoning="Hm, <|im_end|>.")])
    [example] = auto(byte_level, REASONING).examples(row)
    assert written(example, byte_level, trained=True) == "<think>Hm, <|im_end|>.</think>b<|im_end|>"
    named = REASONING.replace("reasoning_content", "thinking")
    assert written(auto(byte_level, named).examples(row)[0], byte_level, trained=True).startswith("<think>Hm")


@pytest.mark.parametrize("name", ["plain", "tagged", "thinking"])
def test_reasoning_that_a_template_leaves_out_is_an_error_of_the_data(byte_level, name):
    template = {"plain": CHATML, "tagged": TAGGED, "thinking": THINKING}[name]
    with pytest.raises(DataError, match="the chat template leaves out the reasoning of an answer"):
        auto(byte_level, template).examples(Conversation([Message("user", "a"), Message("assistant", "b", reasoning="Hm.")]))


@pytest.mark.parametrize(
    "template", [CHATML, TRIMMED, TAGGED, UNENDED, THINKING], ids=["chatml", "trimmed", "tagged", "unended", "thinking"]
)
@pytest.mark.parametrize("cut", [0, 1])
def test_behind_the_place_where_an_answer_was_cut_nothing_is_trained(byte_level, template, cut):
    """The other answer is trained completely, including its terminator."""
    whole = talk("Hello?", "Hi, my friend", "Who?", "Me and you")
    messages = [replace(m, cut=m.role == "assistant" and at == 1 + 2 * cut) for at, m in enumerate(whole.messages)]
    render = auto(byte_level, template)
    ends = "<|user|>" if template == UNENDED else "<|im_end|>"
    trained = [written(example, byte_level, trained=True) for example in render.examples(Conversation(messages))]
    as_whole = [written(example, byte_level, trained=True) for example in render.examples(whole)]
    text, uncut = "".join(trained), "".join(as_whole)
    assert text == (uncut.removesuffix(ends) if cut else uncut.replace(f"Hi, my friend{ends}", "Hi, my friend", 1))
    assert len(text) == len(uncut) - len(ends)


def test_reasoning_that_was_cut_is_trained_up_to_there(byte_level):
    row = Conversation([Message("user", "a"), Message("assistant", "", reasoning="Hm, I thi", cut=True)])
    (example,) = auto(byte_level, REASONING).examples(row)
    assert written(example, byte_level, trained=True) == "<think>Hm, I thi"


def test_a_template_file_that_is_no_utf_8_is_refused_by_its_key(byte_level, tmp_path):
    (tmp_path / "my.jinja").write_bytes(b"{# \xff #}" + CHATML.encode())
    with pytest.raises(ConfigError, match=r"render.template: .*my.jinja is not UTF-8 text: byte 0xff can't be read"):
        auto(byte_level, str(tmp_path / "my.jinja"))
