from __future__ import annotations

from dataclasses import replace

import pytest

from llmmod.errors import ConfigError, DataError
from llmmod.render.conversation import Conversation, Message
from llmmod.render.segments import Segment
from llmmod.render.template import Template

END = {"token": "<|im_end|>"}
HUMAN = {"prefix": ["{{system}}"], "sep": ["\n"], "prompt": ["Human: {{query}}\nAssistant: "], "bos": "never"}
ROUNDS = {"prompt": ["[Round {{idx}}]\n\n问：{{query}}\n\n答："], "sep": ["\n\n"], "efficient_eos": True, "bos": "never"}


def talk(*texts, system=None, train=()):
    """A conversation of alternating texts; `train` has the flags of the answers."""
    flags = iter([*train, *[True] * len(texts)])
    said = [Message("user", text) if index % 2 == 0 else Message("assistant", text, next(flags)) for index, text in enumerate(texts)]
    return Conversation([Message("system", system)] * (system is not None) + said)


def written(segments, tokenizer, trained=None):
    """Segments as text; `trained` selects those that are (or aren't) trained."""
    chosen = [segment for segment in segments if trained in (None, segment.trained)]
    return "".join(tokenizer.convert_ids_to_tokens(token) if text is None else text for text, token, *_ in chosen)


def render(tokenizer, **conf):
    return Template(tokenizer=tokenizer, name="mine", **conf)


def test_a_conversation_is_prefix_sep_and_turns_with_sep_between_them(byte_level):
    [example] = render(byte_level, **HUMAN).examples(talk("a", "b", "c", "d", system="S"))
    assert written(example, byte_level) == "S\nHuman: a\nAssistant: b</s>\nHuman: c\nAssistant: d</s>"
    assert written(example, byte_level, trained=True) == " b</s> d</s>"


def test_a_prompt_is_one_text_between_tokens_and_an_answer_is_another(byte_level):
    eos = byte_level.eos_token_id
    assert render(byte_level, **HUMAN).examples(talk("a", "b", system="S")) == [
        [Segment("S\nHuman: a\nAssistant:"), Segment(" b", trained=True), Segment(token=eos, trained=True)]
    ]


@pytest.mark.parametrize(
    ("conf", "said", "expected"),
    [
        ({"system": "R"}, None, "R\nHuman"),
        ({"system": "R"}, "S", "S\nHuman"),
        ({"system": "R"}, "", "Human"),
        ({}, None, "Human"),
        ({"empty_prefix": ["none, "]}, None, "none, Human"),
        ({"prefix": [END, "{{system}}"]}, None, "<|im_end|>\nHuman"),
    ],
    ids=["the-renders", "the-conversations", "empty-overrides", "none", "empty-prefix", "token-stays"],
)
def test_the_prefix_is_left_out_with_its_sep_where_nothing_of_it_is_left(byte_level, conf, said, expected):
    assert written(render(byte_level, **{**HUMAN, **conf}).prompt(talk("a", system=said)), byte_level) == f"{expected}: a\nAssistant:"


def test_rounds_count_from_one_and_placeholders_in_a_text_are_text(byte_level):
    prompt = render(byte_level, **ROUNDS).prompt(talk("{{idx}} {{query}}", "{{response}}", "b"))
    assert written(prompt, byte_level) == "[Round 1]\n\n问：{{idx}} {{query}}\n\n答：{{response}}\n\n[Round 2]\n\n问：b\n\n答："


def test_efficient_eos_trains_the_terminator_in_the_place_of_the_next_turns_first_token(byte_level):
    eos = byte_level.eos_token_id
    [example] = render(byte_level, **ROUNDS).examples(talk("a", "b", "c", "d"))
    assert example == [
        Segment("[Round 1]\n\n问：a\n\n答："),
        Segment("b", trained=True),
        Segment("\n\n[Round 2]\n\n问：c\n\n答：", first_label=eos),
        Segment("d", trained=True),
        Segment(token=eos, trained=True),
    ]


def test_efficient_eos_trains_no_terminator_after_an_answer_that_is_not_trained(byte_level):
    [example] = render(byte_level, **ROUNDS).examples(talk("a", "b", "c", "d", train=[False]))
    assert [segment.first_label for segment in example] == [None] * 5
    assert [segment.trained for segment in example] == [False, False, False, True, True]


@pytest.mark.parametrize(
    ("conf", "train", "trained"),
    [
        ({}, [True, True], " b</s> d</s>"),
        ({"train_on": "last"}, [True, True], " d</s>"),
        ({}, [True, False], " b</s>"),
        ({}, [False, True], " d</s>"),
    ],
    ids=["all", "last", "not-the-second", "not-the-first"],
)
def test_which_answers_are_trained(byte_level, conf, train, trained):
    template = render(byte_level, **HUMAN, **conf)
    [example] = template.examples(talk("a", "b", "c", "d", train=train))
    assert written(example, byte_level, trained=True) == trained
    assert written(example, byte_level) == "Human: a\nAssistant: b</s>\nHuman: c\nAssistant: d</s>"  # the text is the same


def test_nothing_to_train_is_an_error_of_the_data(byte_level):
    with pytest.raises(DataError, match="none of its answers is trained"):
        render(byte_level, **HUMAN, train_on="last").examples(talk("a", "b", "c", "d", train=[True, False]))


def test_mask_prompt_false_trains_the_prompt_but_no_tool_result(byte_level):
    messages = [Message("user", "a"), Message("assistant", "b"), Message("tool", "c"), Message("assistant", "d")]
    [example] = render(byte_level, **HUMAN).examples(Conversation(messages), mask_prompt=False)
    assert written(example, byte_level, trained=True) == "Human: a\nAssistant: b</s> d</s>"
    assert written(example, byte_level, trained=False) == "\nHuman: c\nAssistant:"


def test_without_history_each_turn_is_an_example_of_its_own(byte_level):
    template = render(byte_level, **HUMAN, use_history=False)
    first, second = template.examples(talk("a", "b", "c", "d", system="S"))
    assert written(first, byte_level) == "S\nHuman: a\nAssistant: b</s>"
    assert written(second, byte_level) == "S\nHuman: c\nAssistant: d</s>"
    assert written(template.prompt(talk("a", "b", "c", system="S")), byte_level) == "S\nHuman: c\nAssistant:"


def test_the_prompt_of_a_conversation_that_ends_with_an_answer_asks_for_it_again(byte_level):
    template = render(byte_level, **HUMAN)
    assert template.prompt(talk("a", "b", "c", "d")) == template.prompt(talk("a", "b", "c"))


def test_what_follows_the_last_answer_is_not_trained(byte_level):
    template = render(byte_level, **HUMAN)
    assert template.examples(talk("a", "b", "c")) == template.examples(talk("a", "b"))


def test_a_prompt_is_the_beginning_of_the_example_that_trains_its_answer(tokenizer):
    for conf in (HUMAN, ROUNDS):
        template = render(tokenizer, **conf)
        prompt = template.prompt(talk("a", "b", "c"))
        [example] = template.examples(talk("a", "b", "c", "d"))
        assert [segment[:2] for segment in example[: len(prompt)]] == [segment[:2] for segment in prompt]


@pytest.mark.parametrize(
    ("bos", "expected"),
    [
        ("auto", "<s>Human: a\nAssistant: b</s>\nHuman: c\nAssistant:"),
        ("once", "<s>Human: a\nAssistant: b</s>\nHuman: c\nAssistant:"),
        ("each_turn", "<s>Human: a\nAssistant: b</s>\n<s>Human: c\nAssistant:"),
        ("never", "Human: a\nAssistant: b</s>\nHuman: c\nAssistant:"),
    ],
)
def test_where_the_beginning_token_stands(byte_level, bos, expected):
    assert written(render(byte_level, **{**HUMAN, "bos": bos}).prompt(talk("a", "b", "c")), byte_level) == expected


def test_the_beginning_token_never_stands_twice(byte_level):
    conf = {**HUMAN, "prefix": [{"token": "<s>"}, "{{system}}"], "bos": "once"}
    assert written(render(byte_level, **conf).prompt(talk("a")), byte_level) == "<s>\nHuman: a\nAssistant:"


def test_llama2s_system_text_is_the_beginning_of_the_first_query_and_white_space_is_stripped(byte_level):
    conf = {"prefix": ["<<SYS>>\n{{system}}\n<</SYS>>\n\n"], "empty_prefix": [], "prompt": ["[INST] {{query}} [/INST] "]}
    conf |= {"response": ["{{response}} ", {"token": "eos_token"}], "system_in_query": True, "strip": True, "bos": "each_turn"}
    template = render(byte_level, **conf)
    [example] = template.examples(talk(" a ", " b\n", "c", "d", system="S"))
    assert written(example, byte_level) == "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\n a [/INST] b </s><s>[INST] c [/INST] d </s>"
    assert written(template.prompt(talk(" a ")), byte_level) == "<s>[INST] a [/INST]"


@pytest.mark.parametrize(
    ("conf", "stops"),
    [
        ({}, ["</s>"]),
        ({"response": ["{{response}}", END]}, ["<|im_end|>", "</s>"]),
        ({"stop_words": ["<|im_end|>", "</s>"]}, ["</s>", "<|im_end|>"]),
    ],
    ids=["eos", "terminator", "stop-words"],
)
def test_generation_stops_at_the_terminator_eos_and_the_stop_words(byte_level, conf, stops):
    assert byte_level.convert_ids_to_tokens(render(byte_level, prompt=["{{query}}"], **conf).stop_ids) == stops


@pytest.mark.parametrize("generated", [" b", "b"], ids=["as-written", "decoded-without-its-space"])
def test_an_answer_is_read_without_what_the_render_writes_around_it(byte_level, generated):
    assert render(byte_level, **HUMAN).read_answer(generated) == "b"


def test_definitions_and_calls_of_tools_are_written_as_json(byte_level):
    call, tool = {"name": "clock"}, {"name": "clock", "parameters": {}}
    messages = [Message("system", "S"), Message("user", "a"), Message("assistant", "b", tool_calls=[call])]
    [example] = render(byte_level, **HUMAN).examples(Conversation(messages, tools=[tool]))
    assert written(example, byte_level) == 'S\n{"name": "clock", "parameters": {}}\nHuman: a\nAssistant: b\n{"name": "clock"}</s>'


def test_reasoning_that_no_part_writes_is_an_error_of_the_data(byte_level):
    messages = [Message("user", "a"), Message("assistant", "b", reasoning="Hm.")]
    with pytest.raises(DataError, match="leaves out the reasoning of an answer"):
        render(byte_level, **HUMAN).examples(Conversation(messages))


def test_a_text_that_spells_a_piece_of_the_model_is_kept_text(slow_baichuan2):
    template = render(slow_baichuan2, prompt=["{{query}}"], response=["{{response}}", {"token": "<eoa>"}])
    assert template.prompt(talk("a<eoa>b")) == [Segment("a<"), Segment("eoa>b")]


def test_all_problems_come_at_once(byte_level):
    with pytest.raises(ConfigError) as error:
        render(byte_level, prefix=[{"token": "<none>"}], prompt=["{{qeury}}"], stop_words=["<stop>"])
    assert [problem.key for problem in error.value.problems] == ["render.prefix[0]", "render.prompt[0]", "render.stop_words[0]"]


@pytest.mark.parametrize(
    ("conf", "key"),
    [
        ({"response": ["{{response}}\n"], "efficient_eos": True}, "render.response"),
        ({"prefix": [END], "system_in_query": True}, "render.prefix"),
        ({"template": "x.jinja"}, "render.template"),
    ],
    ids=["no-terminator", "token-in-query", "auto-only"],
)
def test_parts_that_do_not_fit_together_are_refused(byte_level, conf, key):
    with pytest.raises(ConfigError) as error:
        render(byte_level, **{"prompt": ["{{query}}"], **conf})
    assert [problem.key for problem in error.value.problems] == [key]


def test_a_message_is_not_changed_by_being_rendered(byte_level):
    conversation = talk("a", "b", system="S")
    before = [replace(message) for message in conversation.messages]
    render(byte_level, **HUMAN, strip=True).examples(conversation)
    assert list(conversation.messages) == before
