from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmmod.render.encode import IGNORED, Encoded, TextEncoder, encode, encode_prompt
from llmmod.render.segments import Segment

KINDS = ["byte_level", "dummy_prefix", "dummy_prefix_first", "slow_chatglm2", "slow_baichuan2"]
texts = st.text(st.sampled_from(list("ab e\n你好😀.1</s>|{}")), min_size=1, max_size=12).map(lambda text: Segment(text))
tokens = st.sampled_from([1, 2]).map(lambda token: Segment(token=token))
labelled = st.one_of(texts, tokens).flatmap(
    lambda segment: st.builds(segment._replace, trained=st.booleans(), first_label=st.sampled_from([None, None, 2]))
)
examples = st.lists(st.lists(labelled, max_size=6), max_size=4)


@pytest.mark.parametrize("name", KINDS)
@given(data=examples)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_ids_are_those_of_each_segment_on_its_own_and_labels_lie_over_them(request, name, data):
    tokenizer = request.getfixturevalue(name)
    encoder = TextEncoder(tokenizer)
    for example, (ids, labels) in zip(data, encode(data, tokenizer), strict=True):
        assert len(ids) == len(labels)
        at = 0
        for previous, segment in pairwise([None, *example]):
            behind = None if previous is None else previous.token if previous.text is None else previous.text
            continuing = encoder.continues(behind)
            own = [segment.token] if segment.text is None else encoder.encode([segment.text], continuing=continuing)[0]
            label = own if segment.trained else [IGNORED] * len(own)
            expected = label if segment.first_label is None else [segment.first_label, *label[1:]][: len(own)]
            assert (ids[at : at + len(own)], labels[at : at + len(own)]) == (own, expected)
            at += len(own)
        assert at == len(ids)


def test_an_answer_is_encoded_as_a_text_and_not_character_by_character(byte_level):
    # LLaMA-Efficient-Tuning passed list("…") to the tokenizer and got 500 tokens for 106.
    answer = "Hi, what can I do for you?"
    [(ids, labels)] = encode([[Segment(token=1), Segment(answer, trained=True)]], byte_level)
    assert labels == [IGNORED, *byte_level(answer, add_special_tokens=False)["input_ids"]]
    assert len(ids) < len(answer) / 2


def test_a_batch_gives_what_each_example_gives_alone(tokenizer):
    batch = [[Segment("Hello"), Segment(" you", trained=True)], [], [Segment("Hello"), Segment(token=2)], [Segment(" you")]]
    assert encode(batch, tokenizer) == [encode([example], tokenizer)[0] for example in batch]
    assert encode([[]], tokenizer) == [Encoded([], [])]


def test_a_prompt_gives_its_ids(byte_level):
    assert encode_prompt([Segment(token=1), Segment("Hello")], byte_level) == byte_level("Hello")["input_ids"]
