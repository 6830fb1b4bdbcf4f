"""A process that can't import llmmod, as for the recipient of an exported model; as a script, this file is that process."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile

import pytest


@pytest.fixture(scope="session")
def elsewhere():
    """A function: the prompt and answer ids of each question, by the model in a directory. One process answers all calls."""
    started = []

    def answered(directory, questions):
        if not started:
            errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  # it is read after a failure
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors}
            started.extend([subprocess.Popen([sys.executable, __file__], text=True, **pipes), errors])
        process, errors = started
        process.stdin.write(json.dumps([str(directory), questions]) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            process.wait()
            errors.seek(0)
            started.clear()
        assert line, errors.read()
        return json.loads(line)

    yield answered
    if started:
        started[0].communicate()


def main():
    """Answer each line of stdin, [directory, questions], with a line."""
    sys.modules["llmmod"] = None
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for line in sys.stdin:
        directory, questions = json.loads(line)
        model, tokenizer = AutoModelForCausalLM.from_pretrained(directory), AutoTokenizer.from_pretrained(directory)
        answers = []
        for question in questions:
            chat = [{"role": "user", "content": question}]
            prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
            ids = prompt["input_ids"]
            answers.append([ids[0].tolist(), model.generate(**prompt)[0, ids.shape[1] :].tolist()])
        print(json.dumps(answers), flush=True)


if __name__ == "__main__":
    main()
