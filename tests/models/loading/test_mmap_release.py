"""Pages of weight files are released during reading, and the weights don't change."""

from __future__ import annotations

import mmap
import sys

import pytest
import torch

from llmmod.models.loading.load import load_model
from llmmod.models.loading.weight_files import count_mapped_read, mmap_release

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
SIZE = 32 * 2**20


@pytest.fixture
def file(tmp_path):
    """A file of 32 MiB of ones."""
    path = tmp_path / "weights"
    path.write_bytes(b"\1" * SIZE)
    return path


def resident(path):
    """Bytes of a mapped file that are in memory."""
    with open("/proc/self/smaps", encoding="utf-8") as lines:
        kilobytes, inside = 0, False
        for line in lines:
            if not line.split()[0].endswith(":"):
                inside = line.rstrip().endswith(str(path))
            elif inside and line.startswith("Rss:"):
                kilobytes += int(line.split()[1])
    return kilobytes * 1024


def mapped(path):
    return torch.UntypedStorage.from_file(str(path), False, SIZE)  # private, as torch.load(mmap=True) maps it


def test_pages_that_were_read_are_released_and_can_be_read_again(file):
    with mmap_release():
        tensor = torch.empty(0, dtype=torch.uint8)
        tensor.set_(mapped(file))
        assert tensor.sum().item() == SIZE
        assert resident(file) == SIZE
        count_mapped_read(SIZE)
        assert resident(file) < SIZE / 8
        assert tensor.sum().item() == SIZE


def test_a_file_that_was_mapped_before_is_left_alone(file):
    tensor = torch.empty(0, dtype=torch.uint8)
    tensor.set_(mapped(file))
    tensor[0] = 7  # as training does with weights that are still mapped
    with mmap_release():
        count_mapped_read(SIZE)
    assert tensor[0].item() == 7


def test_outside_of_it_nothing_is_done(file):
    tensor = torch.empty(0, dtype=torch.uint8)
    tensor.set_(mapped(file))
    tensor[: mmap.PAGESIZE] = 7
    count_mapped_read(SIZE)
    assert tensor[: mmap.PAGESIZE].sum().item() == 7 * mmap.PAGESIZE


def test_a_second_load_leaves_the_first_model_as_it_was_trained(llama_directory, ids, logits):
    first = load_model(str(llama_directory))
    with torch.no_grad():
        first.lm_head.weight.add_(1.0)
    before = logits(first, ids)
    second = load_model(str(llama_directory), dtype="bfloat16")
    assert torch.equal(logits(first, ids), before)
    assert second.dtype is torch.bfloat16
