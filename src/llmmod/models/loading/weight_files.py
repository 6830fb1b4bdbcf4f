"""How weight files are read: GGUF files as plain models and tokenizers, and any file without keeping it in memory beside the model.

GGUF is llama.cpp's format. transformers reads it, with three shortcomings that are made good here: it parses the file's hundred thousand
strings anew for each part of the work, it leaves the model marked as quantized, so that nothing can save it, and it doesn't know how every
tokenizer splits text before merging. Left out on purpose: weights that stay packed in GGUF blocks. They can't be trained.

Weight files are mapped, and a mapped page counts as the process's own from when it is read. Where weights are converted on the way, to
another type or to 4 bit, both would be there at the end: 1.5 times the model from float16 to float32, 4 times in 4 bit. `mmap_release`
gives back to the system what has been read as loading goes on; a page that is needed again is read again. Linux alone; elsewhere nothing is
done. May go when transformers does it (5.23 doesn't).
"""

from __future__ import annotations

import ctypes
import functools
import logging
import math
import mmap
import os
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gguf
import numpy as np
import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, core_model_loading
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
from transformers.integrations.gguf.reader import read_gguf_metadata
from transformers.utils import cached_file
from transformers.utils.quantization_config import GgufConfig

from llmmod.models.loading.structure import rebuild_model
from llmmod.upstream import replaced, require_upstream

require_upstream(__name__)

log = logging.getLogger(__name__)

# llama.cpp's names (src/llama-vocab.cpp) of the tokenizers that take each digit by itself and then split as GPT-2 does.
_DIGITS_THEN_GPT2 = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"})
# And of those that split as GPT-2 alone, which is what transformers does with every name it doesn't know.
_GPT2 = frozenset({"gpt-2", "phi-2", "olmo", "jais", "mpt", "trillion", "gigachat", "mellum"})
_READER = gguf.GGUFReader
_ROWS_AT_ONCE = 32  # joined to one: gguf then unpacks 512 rows at a time, a megabyte of a model of 576 channels
_RELEASE_AFTER = 4 * 2**20  # bytes of weights that may be read before pages are given back
_LIBC: Any = ctypes.CDLL(None) if sys.platform.startswith("linux") else None


def model_from_gguf(path: str, gguf_file: str, *, quantization_config: Any = None, device_map: Any = None, **arguments: Any) -> Any:
    """The file's model with its weights unpacked, which can be trained, saved and reloaded like any other.

    Args:
        path: a directory or hub id.
        gguf_file: the file's name in it.
        quantization_config: a BitsAndBytesConfig to quantize the unpacked weights with.
        device_map: where those go in the end.
        arguments: the rest of from_pretrained's.

    Returns:
        The model, or model and loading info where `output_loading_info` asks for both.
    """
    unpacked = GgufConfig(gguf_file=gguf_file, dequantize=True)
    with quick_gguf_reader():
        model, info = AutoModelForCausalLM.from_pretrained(
            path, gguf_file=gguf_file, quantization_config=unpacked, **arguments | {"output_loading_info": True}
        )
    plain = rebuild_model(model, quantization_config=quantization_config, device_map=device_map)
    return (plain, info) if arguments.get("output_loading_info") else plain


def tokenizer_from_gguf(path: str, gguf_file: str, **arguments: Any) -> PreTrainedTokenizerFast:
    """The file's tokenizer, splitting text the way llama.cpp's `tokenizer.ggml.pre` asks for.

    AutoTokenizer gives the same object, but reads the model's configuration first: 4 s of CPU instead of 0.5 s for 49,000 tokens.
    """
    tokenizer = PreTrainedTokenizerFast.from_pretrained(path, gguf_file=gguf_file, **arguments)
    metadata, _ = read_gguf_metadata(cached_file(path, gguf_file, **arguments))
    if metadata.get("tokenizer.ggml.model") == "gpt2":
        _set_pre_tokenizer(tokenizer, str(metadata.get("tokenizer.ggml.pre", "none")))
    return tokenizer


def _set_pre_tokenizer(tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    """Set the pre-tokenizer that a byte-level vocabulary was learnt with, where transformers doesn't know its name.

    With GPT-2's splitting alone, "1." after an empty line becomes two tokens for two newlines, where SmolLM2's own tokenizer has one.
    """
    if name in _DIGITS_THEN_GPT2:
        digits = pre_tokenizers.Digits(individual_digits=True)
        words = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True)
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    elif name not in GGUF_PRE_TOKENIZER_SPLITS and name not in _GPT2:
        log.warning("tokenizer.ggml.pre=%s isn't known here: text is split as GPT-2 does, which may not be as the original does.", name)


@contextmanager
def quick_gguf_reader() -> Iterator[None]:
    """While it lasts, transformers reads a GGUF file once and quickly: 3 s of CPU instead of 15 s for SmolLM2-135M.

    transformers 5.23 parses every string of the file through numpy views of a memory map, for the configuration and again for the
    weights, and builds the table of tensor names once for each module of the model. It has a quick reader of its own, which takes over
    architecture by architecture; this may go when llama is among them (`GGUF_CONFIG_ARCHS`).
    """
    if gguf.GGUFReader is not _READER:  # patched already, further out
        yield
        return
    unpack = gguf.dequantize

    def dequantize(data: Any, kind: Any) -> Any:
        # gguf unpacks 16 rows at a time: 10 KB of SmolLM2-135M's, of which a call of numpy takes longer than the work. Blocks stand one
        # after another and don't know of rows, so that longer rows give the same numbers.
        rows = np.asarray(data)
        joined = math.gcd(len(rows), _ROWS_AT_ONCE) if rows.ndim == 2 else 1
        unpacked = unpack(rows.reshape(-1, joined * rows.shape[-1]), kind).reshape(len(rows), -1) if joined > 1 else unpack(rows, kind)
        count_mapped_read(unpacked.nbytes)
        return unpacked

    reader, names = functools.lru_cache(1)(_model_reader), functools.lru_cache(4)(gguf.get_tensor_name_map)
    with replaced(gguf, "GGUFReader", reader), replaced(gguf, "get_tensor_name_map", names), replaced(gguf, "dequantize", dequantize):
        yield


class _QuickReader(_READER):  # type: ignore[misc,valid-type]
    """gguf's reader, with the same result, but arrays are walked without a memory map's overhead and without a call an element."""

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> tuple[int, list[Any], list[int], list[Any]]:
        array, data, start = gguf.GGUFValueType.ARRAY, np.asarray(self.data), orig_offs + 12
        kind, count = struct.unpack("<IQ", data[orig_offs:start].tobytes()) if raw_type == array else (array, 0)
        if kind == array:  # no array, or one of arrays
            size, parts, places, types = super()._get_field_parts(orig_offs, raw_type)
            return size, parts, places, types
        head = [data[orig_offs : orig_offs + 4].view(np.uint32), data[orig_offs + 4 : start].view(np.uint64)]
        elements, size = _strings(data, start, count) if kind == gguf.GGUFValueType.STRING else self._scalars(data, start, count, kind)
        places = list(range(3, 2 + len(elements), 2)) if kind == gguf.GGUFValueType.STRING else list(range(2, 2 + count))
        return 12 + size, head + elements, places, [array, gguf.GGUFValueType(kind)] if count else [array]

    def _scalars(self, data: Any, start: int, count: int, kind: int) -> tuple[list[Any], int]:
        dtype = np.dtype(self.gguf_scalar_to_np[gguf.GGUFValueType(kind)])
        values = data[start : start + count * dtype.itemsize].view(dtype)
        return list(values.reshape(-1, 1)), values.nbytes


def _model_reader(path: str) -> _QuickReader:
    """A reader of all that a model needs: of the tokenizer's arrays only how many tokens there are, which is the model's vocabulary.

    transformers turns each of their elements into a Python object, for the configuration and again for the weights.
    """
    reader = _QuickReader(path)
    for name, field in list(reader.fields.items()):
        if name.startswith("tokenizer.ggml.") and field.types[:1] == [gguf.GGUFValueType.ARRAY]:
            count = len(field.data) if name == "tokenizer.ggml.tokens" else 1
            reader.fields[name] = field._replace(parts=[np.zeros(1, np.uint8)], data=[0] * count, types=[gguf.GGUFValueType.UINT8])
    return reader


def _strings(data: Any, start: int, count: int) -> tuple[list[Any], int]:
    """Length and bytes of each string of an array, as views, and how many bytes all take."""
    parts, offset = [], start
    for _ in range(count):
        (length,) = struct.unpack_from("<Q", data, offset)
        parts += [data[offset : offset + 8].view(np.uint64), data[offset + 8 : offset + 8 + length]]
        offset += 8 + length
    return parts, offset - start


class _MappedPages:
    """Pages of files that were mapped whole since this was made: weight files, and no libraries, of which parts are mapped."""

    def __init__(self) -> None:
        self._before = _mapped_files()
        self._read, self._lock = 0, threading.Lock()

    def count(self, size: int) -> None:
        """Give pages back once enough bytes were read."""
        with self._lock:
            self._read += size
            if self._read < _RELEASE_AFTER:
                return
            self._read = 0
        self.give_back()

    def give_back(self) -> None:
        """Drop every page, since none of them was written to and the file has what they held; and what the allocator holds back."""
        for start, length in _mapped_files() - self._before:
            _LIBC.madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), mmap.MADV_DONTNEED)
        if hasattr(_LIBC, "malloc_trim"):  # glibc: packed weights between converted ones keep it from doing so by itself
            _LIBC.malloc_trim(0)


_open_blocks: list[_MappedPages] = []  # of the blocks of `mmap_release` that are open


@contextmanager
def mmap_release() -> Iterator[None]:
    """While it lasts, transformers' loading gives back pages of weight files that it has read; files mapped before are left alone."""
    if not sys.platform.startswith("linux"):
        yield
        return
    copy = core_model_loading._materialize_copy

    def materialize(tensor: Any, device: Any = None, dtype: Any = None) -> torch.Tensor:
        result: torch.Tensor = copy(tensor, device, dtype)
        count_mapped_read(result.numel() * result.element_size())
        return result

    _open_blocks.append(_MappedPages())
    try:
        with replaced(core_model_loading, "_materialize_copy", materialize):
            yield
    finally:
        _open_blocks.pop().give_back()


def count_mapped_read(size: int) -> None:
    """Tell the innermost `mmap_release` of bytes that were read from a mapped file in another way; outside of one nothing is done."""
    if _open_blocks:
        _open_blocks[-1].count(size)


def _mapped_files() -> set[tuple[int, int]]:
    """Address and length of each mapping of a whole file that isn't executable."""
    with open("/proc/self/maps", encoding="utf-8") as lines:
        return {place for line in lines if (place := _whole_file(line))}


def _whole_file(line: str) -> tuple[int, int] | None:
    """What a line of /proc/self/maps says of a file that is mapped from its beginning to its end; None for anything else."""
    addresses, rights, offset, _, inode, *path = line.split(maxsplit=5)
    if inode == "0" or int(offset, 16) or "x" in rights or not path:
        return None
    start, end = (int(address, 16) for address in addresses.split("-"))
    try:
        size = os.stat(path[0].rstrip("\n")).st_size
    except OSError:
        return None
    return (start, end - start) if end - start == -(-size // mmap.PAGESIZE) * mmap.PAGESIZE else None
