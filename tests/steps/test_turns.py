"""A conversation forgets its oldest turns, as few as possible."""

from __future__ import annotations

import pytest

from llmmod.steps.chat import QuestionTooLongError, Turns


def words(conversation):
    """One id per word, so that lengths are easy to count."""
    return [len(word) for message in conversation.messages for word in message.content.split()]


def written(turns, question):
    seen = []
    turns.encode = lambda conversation: (seen.append(conversation), words(conversation))[1]
    turns.ask(question)
    return [(message.role, message.content) for message in seen[-1].messages]


def test_earlier_turns_come_before_the_question():
    turns = Turns(words, system="be brief")
    turns.answered("a", "b")
    turns.answered("c", "d")
    assert written(turns, "e") == [
        ("system", "be brief"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "e"),
    ]  # fmt: skip


def test_without_a_system_text_the_renders_own_is_used():
    assert written(Turns(words), "a") == [("user", "a")]


def test_each_question_alone_without_history():
    turns = Turns(words, keep=False)
    turns.answered("a", "b")
    assert written(turns, "c") == [("user", "c")]


@pytest.mark.parametrize(("limit", "forgotten"), [(9, 0), (8, 1), (7, 1), (6, 1), (5, 2), (3, 2)])
def test_as_many_of_the_oldest_turns_are_forgotten_as_must_be(limit, forgotten):
    # The system text has 1 word, each of two turns 3, the question 2: together 9, 6 or 3 words with none, one or both turns forgotten.
    turns = Turns(words, limit=limit, system="system")
    turns.answered("q1 q1", "a1")
    turns.answered("q2 q2", "a2")
    ids, count = turns.ask("q3 q3")
    assert (len(ids), count) == (9 - 3 * forgotten, forgotten)
    assert turns.ask("q3 q3")[1] == 0, "what was forgotten once is not forgotten again"


def test_a_question_too_long_alone_leaves_the_history_as_it_is():
    turns = Turns(words, limit=4)
    turns.answered("q1", "a1")
    with pytest.raises(QuestionTooLongError) as raised:
        turns.ask("one two three four five")
    assert raised.value.tokens == 5
    assert len(turns.ask("q2")[0]) == 3


def test_clear():
    turns = Turns(words)
    turns.answered("a", "b")
    turns.clear()
    assert written(turns, "c") == [("user", "c")]
