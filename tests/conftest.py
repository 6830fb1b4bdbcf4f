"""Common fixtures: a small tokenizer and small models with random weights, built in a second without a download."""

from __future__ import annotations

import gc
import json
import logging
import os
import shlex
import shutil
import signal
import socket
import sys
import tempfile

import hypothesis
import pytest
import repeated
import warm
from learning import pytest_addoption, pytest_generate_tests, pytest_terminal_summary

__all__ = ["pytest_addoption", "pytest_generate_tests", "pytest_terminal_summary"]

# The models here are so small that a second thread makes them slower, several times slower on a busy machine. Subprocesses inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Expected values here are from a CPU; tests/gpu is for GPUs.
if not os.environ.get("LLMMOD_TEST_GPU"):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

# The libraries that test modules import create half a million permanent objects. Garbage collection would scan them repeatedly, which
# takes a quarter of the import's time.
gc.disable()

# On a busy machine an example may exceed hypothesis' deadline.
hypothesis.settings.register_profile("unhurried", deadline=None)
hypothesis.settings.load_profile("unhurried")

# A shell's background processes ignore Ctrl-C; the tests send some.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish():
    """Turn on garbage collection, for the objects of tests; less often than by default, since trainings collect garbage themselves."""
    repeated.done_once()
    gc.freeze()
    gc.set_threshold(20_000)
    gc.enable()
    gc.unfreeze = _refuse_to_unfreeze


def _refuse_to_unfreeze():
    """After an unfreeze, each later training would scan the objects of all libraries, 0.3 s each time."""
    raise AssertionError("gc.unfreeze() also unfreezes what others have frozen: freeze nothing, or leave it frozen")


CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
_CORPUS = [
    "The quick brown fox jumps over the lazy dog. What is a render? How a conversation is written.",
    "user assistant system question answer llmmod trains, evaluates, exports and chats.",
    "敏捷的棕色狐狸跳过了懒狗。什么是渲染?对话的书写形式。你好,世界!",
] * 4


@pytest.fixture(scope="session", autouse=True)
def handlers_stay_open():
    """The end of a command in this process must not close handlers: absl's also closes its stream, which may be pytest's own file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logging, "shutdown", lambda *_: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def _cache_of_the_tests(tmp_path_factory):
    """A test's examples are not written to the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMMOD_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


WARM_SERVER = pytest.StashKey()


def pytest_configure(config):
    """Start one server of warm processes for all of xdist's workers. On Linux they are forks of it: each would import for 6 s."""
    if getattr(config.option, "numprocesses", None) and not hasattr(config, "workerinput"):
        config.stash[WARM_SERVER] = warm.Server(os.path.join(tempfile.mkdtemp(), "socket"))
        python = shlex.join(warm.python_of(config.stash[WARM_SERVER].place))
        if sys.platform == "linux":  # a long-lived fork is less safe elsewhere
            config.option.tx = [f"{worker}//python={python}" for worker in config.option.tx]


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node):
    """Tell a worker where the server is; this is called in the process that starts them."""
    node.workerinput["warm"] = node.config.stash[WARM_SERVER].place


def pytest_unconfigure(config):
    """End the server."""
    if WARM_SERVER in config.stash:
        config.stash[WARM_SERVER].close()
        shutil.rmtree(os.path.dirname(config.stash[WARM_SERVER].place))


@pytest.fixture(scope="session")
def warm_server(request, tmp_path_factory):
    """The socket of the server of warm processes."""
    if hasattr(request.config, "workerinput"):
        yield request.config.workerinput["warm"]
        return
    server = warm.Server(str(tmp_path_factory.mktemp("warm") / "socket"))
    yield server.place
    server.close()


@pytest.fixture(scope="session")
def warm_python(warm_server):
    """The replacement for `[sys.executable]` in a command that imports torch and trl: see tests/support/warm.py."""
    return warm.python_of(warm_server)


@pytest.fixture(scope="session")
def elsewhere(warm_server):
    """A function: the prompt and answer ids of each question, by the model in a directory, without llmmod (tests/support/elsewhere.py)."""
    with socket.socket(socket.AF_UNIX) as connection:
        warm.connect(connection, f"{warm_server}.elsewhere")
        with connection.makefile("rw") as lines:

            def answered(directory, questions):
                print(json.dumps([str(directory), questions]), file=lines, flush=True)
                answers = json.loads(lines.readline())
                assert isinstance(answers, list), answers
                return answers

            yield answered


@pytest.fixture(scope="session")
def warm_executable(warm_python, tmp_path_factory):
    """`warm_python` as one file: a replacement for `sys.executable`."""
    file = tmp_path_factory.mktemp("warm") / "python"
    file.write_text(f'#!/bin/sh\nexec {shlex.join(warm_python)} "$@"\n')
    file.chmod(0o755)
    return str(file)


@pytest.fixture(autouse=True, scope="module")
def _what_outlives_a_module_is_no_garbage():
    """Freeze the objects of libraries and caches: each training collects garbage twice, which would take 0.3 s or more."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _what_outlives_a_test_is_no_garbage():
    """The same for a test, without collecting first: a training has done so at its end, and what else it may leave is small."""
    gc.freeze()


@pytest.fixture(autouse=True)
def _no_curves_and_no_report(request, monkeypatch):
    """A training's curves take up to a third of a short run's time, a report a tenth: only tests marked `curves` and `report` have them."""
    progress = sys.modules.get("llmmod.trainers.callbacks.progress")
    if progress is not None and request.node.get_closest_marker("curves") is None:
        monkeypatch.setattr(progress, "_draw", lambda state, path, draw: None)
    run = sys.modules.get("llmmod.pipeline.run")
    if run is not None and request.node.get_closest_marker("report") is None:
        monkeypatch.setattr(run, "write_report", lambda run_dir: None)


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """A byte-level BPE tokenizer of about 400 tokens: most Chinese characters take three, every emoji four."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>", "<pad>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="<|endoftext|>", pad_token="<pad>", model_max_length=512
    )


@pytest.fixture(scope="session")
def fragments(tiny_tokenizer):
    """The tokens that are a part of a character."""
    return [token for token in range(len(tiny_tokenizer)) if "\N{REPLACEMENT CHARACTER}" in tiny_tokenizer.decode(token)]


@pytest.fixture
def tiny_llama(tiny_tokenizer, fragments):
    """A Llama of 2 layers and 32 channels with the same weights each time, which generates only whole characters."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,  # far enough from 0 for greedy answers to vary
        bos_token_id=tiny_tokenizer.bos_token_id,
        eos_token_id=tiny_tokenizer.eos_token_id,
        pad_token_id=tiny_tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        model.lm_head.weight[fragments] = 0.0  # a logit of 0 is never the largest of 400
    return model


@pytest.fixture
def tiny_lora(tiny_llama):
    """The Llama with a LoRA adapter whose matrices are both random, so that it changes every answer."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    model = get_peft_model(tiny_llama, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"))
    return model.eval()
