from __future__ import annotations

from dataclasses import replace

import pytest

from llmmod.data.examples.cutoff import LEAST, fit, separate_rounds, shortened, without_oldest
from llmmod.render.conversation import Conversation, Message
from llmmod.render.encode import Encoded

NO = -100


def conversation(*texts, system=None):
    messages = [Message("user" if index % 2 == 0 else "assistant", text) for index, text in enumerate(texts)]
    return Conversation([Message("system", system)] * (system is not None) + messages)


def texts(conversation):
    return [message.content for message in conversation.messages]


def encode(conversations):
    """One token for each character, and two for each message."""
    lengths = [sum(len(message.content) + 2 for message in made.messages) for made in conversations]
    return [Encoded([0] * length, [NO] * (length - 1) + [0]) for length in lengths]


def test_a_question_loses_its_middle_and_an_answer_its_end():
    question, answer = "Q" * 50 + "q" * 50, "A" * 50 + "a" * 50
    kept = LEAST + (100 - LEAST) // 2
    asked, answered = texts(shortened(conversation(question, answer), 0.5))
    assert len(asked) == len(answered) == kept
    assert asked == "Q" * (kept - kept // 2) + "q" * (kept // 2)
    assert answered == answer[:kept]


def test_short_texts_and_the_system_text_stay_whole():
    made = conversation("q" * LEAST, "a", system="s" * 500)
    assert shortened(made, 0.0) == made


def test_nothing_is_lost_at_share_1():
    made = conversation("q" * 99, "a" * 77)
    assert shortened(made, 1.0) == made


def test_question_and_answer_give_up_the_same_share_of_what_is_above_the_least():
    made = conversation("q" * (LEAST + 100), "a" * (LEAST + 200))
    (fitted,) = fit([made], [len(encode([made])[0].input_ids)], 2 * LEAST + 150 + 4, encode)
    assert len(fitted.input_ids) == 2 * LEAST + 50 + 100 + 4  # each keeps half of what is above LEAST


def test_what_can_be_made_to_fit_fits_and_wastes_little():
    made = [conversation("q" * q, "a" * a, "r" * 7, "b" * b) for q, a, b in [(500, 3, 900), (40, 3000, 40), (90, 90, 90)]]
    lengths = [len(example.input_ids) for example in encode(made)]
    for limit in (120, 200):
        for example in fit(made, lengths, limit, encode):
            assert limit * 0.9 <= len(example.input_ids) <= limit


def test_with_uneven_tokens_the_cut_is_tried_again():
    def uneven(conversations):  # the cut removes cheap tokens, so the first guess is too long
        return [Encoded([0] * n, [NO] * n) for made in conversations for n in [sum(t.count("x") * 9 + len(t) for t in texts(made))]]

    made = conversation("q", "x" * 60 + "." * 600)
    length = len(uneven([made])[0].input_ids)
    (fitted,) = fit([made], [length], 400, uneven)
    assert 9 * LEAST < len(fitted.input_ids) <= 400


def test_the_oldest_rounds_are_removed_if_shortening_is_not_enough():
    made = conversation(*"abcdefgh", system="s")  # 27 tokens, and no text is long enough to be shortened
    whole = encode([made])[0]
    seen = []

    def watching(conversations):
        seen.extend(conversations)
        return encode(conversations)

    (fitted,) = fit([made], [len(whole.input_ids)], 16, watching)
    assert len(fitted.input_ids) == 15  # the system text and two rounds
    assert texts(seen[-1]) == ["s", "e", "f", "g", "h"]


def test_what_cannot_be_made_to_fit_says_what_it_needs():
    made = conversation("q" * 10, "a" * 10, "r" * 20, "b" * 20, system="s" * 100)
    assert fit([made], [999], 50, encode) == [102 + 2 * (LEAST + 2)]


def test_without_the_oldest_rounds_the_system_text_stays():
    made = conversation("a", "b", "c", "d", system="s")
    assert texts(without_oldest(made, 1)) == ["s", "c", "d"]


def test_separate_rounds_are_those_that_are_trained():
    made = conversation("a", "b", "c", "d", system="s")
    messages = list(made.messages)
    messages[2] = replace(messages[2], train=False)
    assert [texts(part) for part in separate_rounds(made)] == [["s", "a", "b"], ["s", "c", "d"]]
    assert [texts(part) for part in separate_rounds(Conversation(messages))] == [["s", "c", "d"]]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.77])
def test_shortening_keeps_which_messages_are_trained(share):
    made = Conversation([Message("user", "q" * 99), Message("assistant", "a" * 99, train=False)])
    assert [message.train for message in shortened(made, share).messages] == [True, False]


def test_an_answer_is_cut_before_its_reasoning():
    made = Conversation([Message("user", "q"), Message("assistant", "s" * 50, reasoning="t" * 100)])
    for kept in (LEAST, 90, 120):
        answer = shortened(made, (kept - LEAST) / (150 - LEAST)).messages[-1]
        assert abs(len(answer.reasoning + answer.content) - kept) <= 1
        assert answer.cut
        assert bool(answer.content) == (kept == 120)
