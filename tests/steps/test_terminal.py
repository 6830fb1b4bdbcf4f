"""Questions from a pipe and from a person, and how a conversation ends."""

from __future__ import annotations

import io

import pytest

from llmmod.steps.chat import Terminal


class Tty(io.StringIO):
    def isatty(self):
        return True


class Interrupted(io.StringIO):
    """Lines of input, where `^C` stands for a Ctrl-C while waiting."""

    def readline(self, *arguments):
        line = super().readline(*arguments)
        if line.strip() == "^C":
            raise KeyboardInterrupt
        return line


def asked(text, stdin=io.StringIO):
    out, err = io.StringIO(), io.StringIO()
    return list(Terminal(stdin(text), out, err).questions()), out.getvalue(), err.getvalue()


@pytest.mark.parametrize(
    ("text", "questions"),
    [
        ("one\ntwo\n", ["one", "two"]),
        ("one\ntwo", ["one", "two"]),
        ("\n  one \n\n", ["one"]),
        ("one\nexit\ntwo\n", ["one"]),
        ("one\n QUIT \ntwo\n", ["one"]),
        ("how do I quit vim?\n", ["how do I quit vim?"]),
        ("clear\n你好\r\n", ["clear", "你好"]),
        ("", []),
    ],
    ids=["end of input", "without a last newline", "empty lines", "exit", "quit", "quit in a question", "clear is the caller's", "empty"],
)
def test_lines_of_a_pipe(text, questions):
    assert asked(text) == (questions, "", "")


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_bytes_that_are_no_text_are_replaced_and_reported(encoding, errors):
    stdin, err = io.TextIOWrapper(io.BytesIO(b"caf\xe9\nfine\n"), encoding=encoding, errors=errors), io.StringIO()
    assert list(Terminal(stdin, io.StringIO(), err).questions()) == ["caf\ufffd", "fine"]
    assert err.getvalue() == "(1 byte of it can't be read as UTF-8; the model gets \ufffd instead.)\n"


def test_where_the_locale_is_ascii_a_pipe_of_utf_8_is_read_and_an_answer_printed():
    stdin = io.TextIOWrapper(io.BytesIO("café\n".encode()), encoding="ascii")
    out, err = io.TextIOWrapper(io.BytesIO(), encoding="ascii"), io.StringIO()
    terminal = Terminal(stdin, out, err)
    assert (list(terminal.questions()), err.getvalue()) == (["café"], "")
    terminal.write("é!")
    assert out.buffer.getvalue() == b"?!"


def test_a_pipe_gets_no_greeting_and_a_person_does():
    for stdin, stdout, greeted in [(Tty, Tty, True), (io.StringIO, Tty, False), (Tty, io.StringIO, False)]:
        err = io.StringIO()
        Terminal(stdin(""), stdout(), err).greet("smollm2")
        assert ("smollm2" in err.getvalue()) is greeted


def test_ctrl_c_while_waiting_asks_once_more():
    questions, _, err = asked("one\n^C\ntwo\n", Interrupted)
    assert questions == ["one", "two"]
    assert "Ctrl-C once more, `exit` or the end of input ends the chat." in err


def test_ctrl_c_twice_while_waiting_is_told_to_the_caller():
    with pytest.raises(KeyboardInterrupt):
        asked("one\n^C\n^C\ntwo\n", Interrupted)


def test_ctrl_c_twice_ends_a_persons_chat(monkeypatch):
    lines = iter(["one", KeyboardInterrupt, "two", KeyboardInterrupt, KeyboardInterrupt, "three"])

    def typed(prompt):
        assert prompt == "> "
        line = next(lines)
        if line is KeyboardInterrupt:
            raise KeyboardInterrupt
        return line

    monkeypatch.setattr("builtins.input", typed)
    assert list(Terminal(Tty(), Tty(), io.StringIO()).questions()) == ["one", "two"]


def test_two_interrupts_within_a_second_end_the_run_if_input_is_not_a_terminal(monkeypatch):
    clock = iter([10.0, 12.0, 12.9])
    monkeypatch.setattr("llmmod.steps.chat.time.monotonic", lambda: next(clock))
    terminal = Terminal(io.StringIO(), io.StringIO(), io.StringIO())
    assert [terminal.second_interrupt() for _ in range(3)] == [False, False, True]
    monkeypatch.setattr("llmmod.steps.chat.time.monotonic", lambda: 20.0)
    person = Terminal(Tty(), Tty(), io.StringIO())
    assert [person.second_interrupt() for _ in range(2)] == [False, False]
