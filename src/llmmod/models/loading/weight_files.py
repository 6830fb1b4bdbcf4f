"""Reading weight files: GGUF files as plain models and tokenizers, and any file without a second copy in memory.

GGUF is llama.cpp's format. transformers reads it with three defects that are fixed here. It parses the file's hundred thousand strings
again for each part of the work. It leaves the model marked as quantized, so that it can't be saved. And it doesn't know how some tokenizers
split text before merging. Left out on purpose: weights that stay packed in GGUF blocks, since they can't be trained.

Weight files are memory-mapped, and a mapped page counts as the process's memory once it is read. If weights are converted on loading, to
another dtype or to 4 bit, both copies would be in memory at the end: 1.5 times the model from float16 to float32, 4 times in 4 bit.
`mmap_release` returns pages to the system during loading; a page that is needed again is read again. Only on Linux. It can be removed once
transformers does this (5.23 doesn't).
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

# llama.cpp's names (src/llama-vocab.cpp) of the tokenizers that split off each digit and then split like GPT-2.
_DIGITS_THEN_GPT2 = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"})
# And of those that only split like GPT-2, as transformers does for every unknown name.
_GPT2 = frozenset({"gpt-2", "phi-2", "olmo", "jais", "mpt", "trillion", "gigachat", "mellum"})
_READER = gguf.GGUFReader
_ROWS_AT_ONCE = 32  # rows joined into one: gguf then unpacks 512 rows at a time, a megabyte for 576 channels
_RELEASE_AFTER = 4 * 2**20  # bytes of weights that are read before pages are released
_LIBC: Any = ctypes.CDLL(None) if sys.platform.startswith("linux") else None


def model_from_gguf(path: str, gguf_file: str, *, quantization_config: Any = None, device_map: Any = None, **arguments: Any) -> Any:
    """The file's model with its weights unpacked, which can be trained, saved and reloaded like any other.

    Args:
        path: a directory or hub id.
        gguf_file: the file's name in it.
        quantization_config: a BitsAndBytesConfig to quantize the unpacked weights with.
        device_map: for the final weights.
        arguments: other arguments of from_pretrained.

    Returns:
        The model, or with `output_loading_info` model and loading info.
    """
    unpacked = GgufConfig(gguf_file=gguf_file, dequantize=True)
    with quick_gguf_reader():
        model, info = AutoModelForCausalLM.from_pretrained(
            path, gguf_file=gguf_file, quantization_config=unpacked, **arguments | {"output_loading_info": True}
        )
    plain = rebuild_model(model, quantization_config=quantization_config, device_map=device_map)
    return (plain, info) if arguments.get("output_loading_info") else plain


def tokenizer_from_gguf(path: str, gguf_file: str, **arguments: Any) -> PreTrainedTokenizerFast:
    """The file's tokenizer, with the splitting that llama.cpp's `tokenizer.ggml.pre` names.

    AutoTokenizer returns the same object, but reads the model's configuration first: 4 s of CPU instead of 0.5 s for 49,000 tokens.
    """
    tokenizer = PreTrainedTokenizerFast.from_pretrained(path, gguf_file=gguf_file, **arguments)
    metadata, _ = read_gguf_metadata(cached_file(path, gguf_file, **arguments))
    if metadata.get("tokenizer.ggml.model") == "gpt2":
        _set_pre_tokenizer(tokenizer, str(metadata.get("tokenizer.ggml.pre", "none")))
    return tokenizer


def _set_pre_tokenizer(tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    """Set the pre-tokenizer of a byte-level vocabulary's training, if transformers doesn't know its name.

    With GPT-2's splitting alone, "1." after an empty line becomes two tokens for two newlines, where SmolLM2's own tokenizer has one.
    """
    if name in _DIGITS_THEN_GPT2:
        digits = pre_tokenizers.Digits(individual_digits=True)
        words = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True)
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    elif name not in GGUF_PRE_TOKENIZER_SPLITS and name not in _GPT2:
        log.warning("tokenizer.ggml.pre=%s is unknown: text is split like in GPT-2, which may differ from the original.", name)


@contextmanager
def quick_gguf_reader() -> Iterator[None]:
    """A context in which transformers reads a GGUF file once and quickly: 3 s of CPU instead of 15 s for SmolLM2-135M.

    transformers 5.23 parses every string of the file through numpy views of a memory map, for the configuration and again for the weights,
    and builds the table of tensor names once for each module of the model. Its own quick reader supports some architectures; this can be
    removed once llama is among them (`GGUF_CONFIG_ARCHS`).
    """
    if gguf.GGUFReader is not _READER:  # patched already, by an outer context
        yield
        return
    unpack = gguf.dequantize

    def dequantize(data: Any, kind: Any) -> Any:
        # gguf unpacks 16 rows at a time: 10 KB for SmolLM2-135M, for which a call of numpy takes longer than the work. Blocks are
        # consecutive and independent of rows, so longer rows give the same numbers.
        rows = np.asarray(data)
        joined = math.gcd(len(rows), _ROWS_AT_ONCE) if rows.ndim == 2 else 1
        unpacked = unpack(rows.reshape(-1, joined * rows.shape[-1]), kind).reshape(len(rows), -1) if joined > 1 else unpack(rows, kind)
        count_mapped_read(unpacked.nbytes)
        return unpacked

    reader, names = functools.lru_cache(1)(_model_reader), functools.lru_cache(4)(gguf.get_tensor_name_map)
    with replaced(gguf, "GGUFReader", reader), replaced(gguf, "get_tensor_name_map", names), replaced(gguf, "dequantize", dequantize):
        yield


class _QuickReader(_READER):  # type: ignore[misc,valid-type]
    """gguf's reader with the same result, but without a memory map's overhead and without a call per element of an array."""

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> tuple[int, list[Any], list[int], list[Any]]:
        array, data, start = gguf.GGUFValueType.ARRAY, np.asarray(self.data), orig_offs + 12
        kind, count = struct.unpack("<IQ", data[orig_offs:start].tobytes()) if raw_type == array else (array, 0)
        if kind == array:  # not an array, or an array of arrays
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
    """A reader for a model: of the tokenizer's arrays it reads only the number of tokens, which is the model's vocabulary.

    transformers converts each of their elements to a Python object, for the configuration and again for the weights.
    """
    reader = _QuickReader(path)
    for name, field in list(reader.fields.items()):
        if name.startswith("tokenizer.ggml.") and field.types[:1] == [gguf.GGUFValueType.ARRAY]:
            count = len(field.data) if name == "tokenizer.ggml.tokens" else 1
            reader.fields[name] = field._replace(parts=[np.zeros(1, np.uint8)], data=[0] * count, types=[gguf.GGUFValueType.UINT8])
    return reader


def _strings(data: Any, start: int, count: int) -> tuple[list[Any], int]:
    """Length and bytes of each string of an array, as views, and the total number of bytes."""
    parts, offset = [], start
    for _ in range(count):
        (length,) = struct.unpack_from("<Q", data, offset)
        parts += [data[offset : offset + 8].view(np.uint64), data[offset + 8 : offset + 8 + length]]
        offset += 8 + length
    return parts, offset - start


class _MappedPages:
    """Pages of files that were mapped whole since its creation: weight files, not libraries, of which only parts are mapped.

    `released`: whether any were released because much had been read.
    """

    def __init__(self) -> None:
        self._before = _mappings()
        self._read, self._lock, self.released = 0, threading.Lock(), False

    def count(self, size: int) -> None:
        """Count read bytes, and release pages once there are enough."""
        with self._lock:
            self._read += size
            if self._read < _RELEASE_AFTER:
                return
            self._read, self.released = 0, True
        self.give_back()

    def give_back(self) -> None:
        """Release every page, since none was written to and the file has the same bytes; and the allocator's free memory."""
        for start, length in filter(None, map(_whole_file, _mappings() - self._before)):
            _LIBC.madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), mmap.MADV_DONTNEED)
        if hasattr(_LIBC, "malloc_trim"):  # glibc doesn't do so by itself, because of packed weights between converted ones
            _LIBC.malloc_trim(0)


_open_blocks: list[_MappedPages] = []  # of the active contexts of `mmap_release`


@contextmanager
def mmap_release() -> Iterator[None]:
    """A context in which transformers' loading releases pages of weight files after reading them; files mapped before are ignored."""
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
        if (block := _open_blocks.pop()).released:  # else less than _RELEASE_AFTER was read, and looking for its pages takes milliseconds
            block.give_back()


def count_mapped_read(size: int) -> None:
    """Count bytes that were read from a mapped file in another way, in the innermost `mmap_release`, if one is active."""
    if _open_blocks:
        _open_blocks[-1].count(size)


def _mappings() -> set[str]:
    """The lines of /proc/self/maps, one for each mapping of this process."""
    with open("/proc/self/maps", encoding="utf-8") as lines:
        return set(lines)


def _whole_file(line: str) -> tuple[int, int] | None:
    """Address and length in a line of /proc/self/maps about a whole file that isn't executable; None for other lines."""
    addresses, rights, offset, _, inode, *path = line.split(maxsplit=5)
    if inode == "0" or int(offset, 16) or "x" in rights or not path:
        return None
    start, end = (int(address, 16) for address in addresses.split("-"))
    try:
        size = os.stat(path[0].rstrip("\n")).st_size
    except OSError:
        return None
    return (start, end - start) if end - start == -(-size // mmap.PAGESIZE) * mmap.PAGESIZE else None
