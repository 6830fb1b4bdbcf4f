from __future__ import annotations

import gc
from contextlib import suppress

import pytest

from llmmod.data.examples.tokenize import ExampleTokenizer, gc_paused
from llmmod.data.rows.records import RowLocation
from llmmod.render.auto import AutoTemplate
from llmmod.render.conversation import Conversation, Message


@pytest.fixture
def collecting():
    was_enabled = gc.isenabled()
    yield gc
    gc.enable() if was_enabled else gc.disable()


@pytest.mark.parametrize("on", [True, False], ids=["on", "off"])
def test_the_collector_s_state_is_restored(collecting, on):
    gc.enable() if on else gc.disable()
    with suppress(KeyError), gc_paused():
        assert not gc.isenabled()
        raise KeyError
    assert gc.isenabled() == on


@pytest.mark.parametrize("option", ["chatml", "auto"])
def test_a_batch_leaves_no_cycles_behind(collecting, chatml, tiny_tokenizer, option):
    render = chatml if option == "chatml" else AutoTemplate(tokenizer=tiny_tokenizer, name="auto", template=chatml.chat_template())
    said = Conversation([Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "a " * 90), Message("assistant", "b " * 90)])
    rows = [(RowLocation("x", number), said) for number in range(20)]
    tokenizing = ExampleTokenizer(render, tiny_tokenizer, 90)
    tokenizing.tokenize(rows)  # objects that are created once may contain cycles
    gc.collect()
    gc.disable()
    assert all(made.examples for made in tokenizing.tokenize(rows))
    assert gc.collect() == 0
