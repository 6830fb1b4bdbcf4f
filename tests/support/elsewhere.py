"""Processes that can't import llmmod, as for the recipient of an exported model, and answer questions by it.

They are forks of the warm server (warm.py) from the time when it had imported transformers and not yet llmmod.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import traceback


def serve(place):
    """In a fork of this process, answer clients at a socket until stdin ends, each in a fork of its own."""
    from transformers import AutoModelForCausalLM  # noqa: F401  # for all of them

    if os.fork():
        return
    assert not [name for name in sys.modules if name.partition(".")[0] == "llmmod"]
    sys.modules["llmmod"] = None
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(place)
        listening.listen()
        while sys.stdin not in select.select([listening, sys.stdin], [], [])[0]:
            connection, _ = listening.accept()
            with connection:
                if os.fork() == 0:
                    with connection.makefile("rw") as lines:
                        answer(lines)
                    os._exit(0)
    os._exit(0)


def answer(lines):
    """Answer each line, [directory, questions], with a line: the ids of each prompt and answer, or the text of an error."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for line in lines:
        try:
            directory, questions = json.loads(line)
            model, tokenizer = AutoModelForCausalLM.from_pretrained(directory), AutoTokenizer.from_pretrained(directory)
            answers = []
            for question in questions:
                chat = [{"role": "user", "content": question}]
                prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
                ids = prompt["input_ids"]
                answers.append([ids[0].tolist(), model.generate(**prompt)[0, ids.shape[1] :].tolist()])
        except Exception:
            answers = traceback.format_exc()
        print(json.dumps(answers), file=lines, flush=True)
