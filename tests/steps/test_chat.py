"""Chat: the model's input, the output, and the history of the conversation."""

from __future__ import annotations

import io

import pytest
import torch

from llmmod.config.schema.generation import GenerationConf
from llmmod.config.schema.model import ModelConf
from llmmod.config.schema.steps import ChatConf
from llmmod.render.conversation import Conversation, Message
from llmmod.render.encode import encode_prompt
from llmmod.steps.chat import Chat, Terminal


def chat(session, text, conf=None, stdin=io.StringIO):
    """Stdout, stderr and the report of a chat whose input is `text`."""
    out, err = io.StringIO(), io.StringIO()
    report = Chat(conf or ChatConf(), "chat", Terminal(stdin(text), out, err)).run(session)
    return out.getvalue(), err.getvalue(), report


def answer(session, *messages, tokens=24):
    """The model's greedy answer, computed without the code that chat uses."""
    roles = {"s": "system", "u": "user", "a": "assistant"}
    tokenizer, render = session.tokenizer("chat"), session.render("chat")
    conversation = Conversation([Message(roles[role], content) for role, content in messages])
    ids = encode_prompt(render.prompt(conversation), tokenizer)
    model, given = session.loaded.model, len(ids)
    with torch.no_grad():
        while len(ids) < given + tokens:
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] in render.stop_ids:
                break
    new = [token for token in ids[given:] if token not in render.stop_ids]
    return tokenizer.decode(new, skip_special_tokens=True).strip()


def test_answers_come_one_after_another_and_nothing_else(make_session, tiny_llama):
    session = make_session(tiny_llama)
    first = answer(session, ("u", "What is a render?"))
    second = answer(session, ("u", "What is a render?"), ("a", first), ("u", "你好"))
    out, err, report = chat(session, "What is a render?\n你好\n")
    assert out == f"{first}\n{second}\n"
    assert err == ""
    assert report.summary[0].startswith("chat: 2 questions answered, ")


def test_an_adapter_answers_too(make_session, tiny_lora):
    session = make_session(tiny_lora, kind="adapter")
    assert chat(session, "hello\n")[0] == answer(session, ("u", "hello")) + "\n"


def test_clear_forgets_and_exit_ends(make_session, tiny_llama):
    session = make_session(tiny_llama)
    first, other = answer(session, ("u", "one")), answer(session, ("u", "two"))
    assert answer(session, ("u", "one"), ("a", first), ("u", "two")) != other, "history must matter for this test to say anything"
    out, err, _ = chat(session, "one\nclear\ntwo\nexit\nthree\n")
    assert out == f"{first}\n{other}\n"
    assert err == "The conversation is forgotten.\n"


def test_without_history_each_question_stands_alone(make_session, tiny_llama):
    session = make_session(tiny_llama)
    out, _, _ = chat(session, "one\ntwo\n", ChatConf(history=False))
    assert out == f"{answer(session, ('u', 'one'))}\n{answer(session, ('u', 'two'))}\n"


def test_system_text_of_the_step(make_session, tiny_llama):
    session = make_session(tiny_llama)
    out, _, _ = chat(session, "one\n", ChatConf(system="Be brief."))
    assert out == answer(session, ("s", "Be brief."), ("u", "one")) + "\n"


def test_it_stops_at_the_renders_stop_word(make_session, tiny_llama, tiny_tokenizer):
    # A model that often generates the end-of-turn token: if it weren't a stop word, each answer would have all 24 tokens.
    with torch.no_grad():
        tiny_llama.lm_head.weight[tiny_tokenizer.convert_tokens_to_ids("<|im_end|>")] *= 3
    session = make_session(tiny_llama)
    session.loaded.model.generation_config.eos_token_id = tiny_tokenizer.eos_token_id
    expected = answer(session, ("u", "hello"))
    assert len(tiny_tokenizer.encode(expected)) < 20, "the model must stop by itself for this test to say anything"
    out, _, _ = chat(session, "hello\n")
    assert out == expected + "\n"
    assert "<|im_end|>" not in out


def test_a_long_history_loses_its_oldest_turns_and_says_so(make_session, tiny_llama):
    session = make_session(tiny_llama, model=ModelConf(name="tiny", model_max_length=100))
    out, err, _ = chat(session, "one\ntwo\nthree\nfour\n")
    assert "oldest turn" in err
    assert "100 tokens" in err
    assert len(out.splitlines()) >= 4
    last = answer(session, ("u", "four"))
    assert not out.endswith(f"\n{last}\n"), "what fits is still remembered"


def test_a_question_too_long_is_refused_and_the_chat_goes_on(make_session, tiny_llama):
    session = make_session(tiny_llama, model=ModelConf(name="tiny", model_max_length=60))
    out, err, _ = chat(session, f"{'long ' * 100}\nhi\n")
    assert out == answer(session, ("u", "hi")) + "\n"
    assert "With its prompt this question has" in err
    assert "at most 36 leave room for an answer" in err


def test_an_answer_never_runs_over_the_context(make_session, tiny_llama, tiny_tokenizer):
    session = make_session(
        tiny_llama,
        model=ModelConf(name="tiny", model_max_length=64),
        generation=GenerationConf(do_sample=False, max_new_tokens=1000),
    )
    prompt = encode_prompt(session.render("chat").prompt(Conversation([Message("user", "hello")])), tiny_tokenizer)
    out, _, _ = chat(session, "hello\n")
    assert out == answer(session, ("u", "hello"), tokens=64 - len(prompt)) + "\n"


def test_ctrl_c_ends_the_answer_and_keeps_what_was_said(make_session, tiny_llama, monkeypatch):
    session = make_session(tiny_llama)
    written = []

    class Impatient(Terminal):
        def write(self, piece):
            written.append(piece)
            if len(written) == 3:
                raise KeyboardInterrupt

    Chat(ChatConf(), "chat", Impatient(io.StringIO("one\ntwo\n"), io.StringIO(), io.StringIO())).run(session)
    cut = "".join(written[:3])
    assert "".join(written[3:]) == "\n" + answer(session, ("u", "one"), ("a", cut), ("u", "two")) + "\n"


def test_a_second_ctrl_c_at_once_ends_the_run_if_input_is_not_a_terminal(make_session, tiny_llama):
    class Insistent(Terminal):
        def write(self, piece):
            if piece != "\n":
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Chat(ChatConf(), "chat", Insistent(io.StringIO("one\ntwo\nthree\n"), io.StringIO(), io.StringIO())).run(make_session(tiny_llama))


def test_a_trained_model_answers_in_evaluation_mode(make_session, tiny_llama):
    tiny_llama.config.attention_dropout = 0.5
    for module in tiny_llama.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    tiny_llama.train()
    session = make_session(tiny_llama)
    out, _, _ = chat(session, "hello\n")
    tiny_llama.eval()
    assert out == answer(session, ("u", "hello")) + "\n"


def test_only_rank_0_talks(make_session, tiny_llama, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert chat(make_session(tiny_llama), "hello\n")[0] == ""
