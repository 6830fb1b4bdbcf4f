"""Chat in a separate process: on a terminal and with a pipe, with a real Ctrl-C."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time

import pytest

WAIT_S = 90

# A session whose model never ends an answer by itself, so that Ctrl-C must.
CHILD = """
import gc
gc.disable()  # takes a quarter of the time of importing
import sys
from types import SimpleNamespace
from transformers import AutoModelForCausalLM, AutoTokenizer
from llmmod.protocols import LoadedModel
from llmmod.render.template import Template
from llmmod.config.schema.generation import GenerationConf
from llmmod.config.schema.model import ModelConf
from llmmod.config.schema.steps import ChatConf
from llmmod.steps.chat import Chat
gc.freeze()
gc.enable()

model, tokenizer = AutoModelForCausalLM.from_pretrained(sys.argv[1]), AutoTokenizer.from_pretrained(sys.argv[1])
render = Template(tokenizer=tokenizer, name="plain", prompt=["{{query}}\\n"], response=["{{response}}", {"token": "eos_token"}])
session = SimpleNamespace(
    root=SimpleNamespace(generation=GenerationConf(do_sample=False, max_new_tokens=40000, suppress_tokens=[0, 2])),
    tokenizer=lambda step: tokenizer,
    render=lambda step: render,
    model=lambda step: LoadedModel(model, "base"),
    conf=lambda step, part: ModelConf(name="tiny") if part == "model" else None,
)
for _ in range(int(sys.argv[2])):
    print(Chat(ChatConf(), "chat").run(session).summary[0], file=sys.stderr)
"""


@pytest.fixture
def command(tiny_llama, tiny_tokenizer, tmp_path):
    tiny_llama.config.max_position_embeddings = 100_000
    tiny_llama.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    return ["-c", CHILD, str(tmp_path)]


class Screen:
    """A process on a pseudo-terminal, and its output so far."""

    def __init__(self, command):
        self.master, terminal = pty.openpty()
        environment = {**os.environ, "TERM": "dumb"}
        self.process = subprocess.Popen(
            command, stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True, preexec_fn=_own_terminal, env=environment
        )
        os.close(terminal)
        self.shown = ""

    def type(self, keys):
        # Python's readline misses a signal between its prompt and its first wait for a key (a person is never that fast).
        time.sleep(0.3)
        os.write(self.master, keys.encode())

    def wait_for(self, count, text):
        """Read until `text` was shown `count` times."""
        self._read_until(lambda: self.shown.count(text) >= count)

    def wait_for_more(self, characters):
        """Read until this number of further characters was shown."""
        wanted = len(self.shown) + characters
        self._read_until(lambda: len(self.shown) >= wanted)

    def _read_until(self, enough):
        until = time.monotonic() + WAIT_S
        while not enough() and time.monotonic() < until:
            if select.select([self.master], [], [], 1)[0]:
                try:
                    self.shown += os.read(self.master, 65536).decode(errors="ignore")
                except OSError:  # on Linux: the other end is closed
                    break
        assert enough(), self.shown[-2000:]

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.master)


def _own_terminal():
    """Make stdin the controlling terminal of the new session, so that the key Ctrl-C sends SIGINT to the process."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.fixture
def screen(command):
    screen = Screen([sys.executable, *command, "2"])
    yield screen
    screen.close()


def test_on_a_terminal_ctrl_c_ends_an_answer_and_twice_at_the_prompt_the_chat(screen):
    """Two chats, one after the other; `exit` ends the first."""
    screen.wait_for(1, "> ")
    assert "Chat with tiny." in screen.shown
    screen.type("hello\n")
    screen.wait_for(1, "hello")
    screen.wait_for_more(40)  # it is answering
    prompts = screen.shown.count("\n> ")
    screen.type("\x03")
    screen.wait_for(prompts + 1, "\n> ")
    screen.type("clear\n")
    screen.wait_for(1, "The conversation is forgotten.")
    screen.type("exit\n")
    screen.wait_for(1, "chat: 1 question answered")
    screen.wait_for(2, "Chat with tiny.")
    assert "Traceback" not in screen.shown
    screen.shown = screen.shown.rpartition("Chat with tiny.")[2]
    screen.wait_for(1, "> ")
    screen.type("\x03")
    screen.wait_for(1, "Ctrl-C once more")
    screen.wait_for(2, "> ")
    screen.type("\x03")
    screen.wait_for(1, "chat: 0 questions answered")
    assert screen.process.wait(WAIT_S) == 0
    assert "Traceback" not in screen.shown


def test_at_the_end_of_a_pipe_ctrl_c_ends_the_answer_alone(command, warm_python):
    process = subprocess.Popen([*warm_python, *command, "1"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        process.stdin.write("你好\n".encode())
        process.stdin.flush()
        begun = process.stdout.read(20)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(b"clear\nexit\n", timeout=WAIT_S)
    finally:
        process.kill()
    assert process.returncode == 0, err.decode()
    assert (begun + out).endswith(b"\n")
    assert (begun + out).count(b"\n") == (begun + out).rstrip(b"\n").count(b"\n") + 1
    assert "The conversation is forgotten.\nchat: 1 question answered" in err.decode()
    (begun + out).decode()  # whole characters, even where the answer was cut
