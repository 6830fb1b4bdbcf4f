"""The loss curve: smoothing by hand, and an image that is either complete or missing."""

from __future__ import annotations

import struct
from types import SimpleNamespace

import pytest

from llmmod.trainers.callbacks.progress import draw_loss_curve, loss_curve, smoothed

pytestmark = pytest.mark.curves
HISTORY = [{"step": 0, "eval_loss": 3.0}, {"step": 1, "loss": 2.5}, {"step": 2, "loss": 2.0}, {"step": 2, "eval_loss": 2.2}]


def png_size(path):
    """Width and height from the header (PNG specification 1.2, sections 3.1 and 4.1.1)."""
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", head[16:24])


def test_smoothing_by_hand():
    # Averages with weights 0.5: 2; (0.5*1 + 0.5*4) / 0.75; (0.5*2.5 + 0.5*4) / 0.875
    assert smoothed([2.0, 4.0, 4.0], keep=0.5) == pytest.approx([2.0, 2.5 / 0.75, 3.25 / 0.875])


def test_smoothing_leaves_a_constant_alone():
    assert smoothed([1.5] * 5) == pytest.approx([1.5] * 5)


def test_a_picture(tmp_path):
    assert draw_loss_curve(HISTORY, tmp_path / "loss.png")
    width, height = png_size(tmp_path / "loss.png")
    assert width >= 600
    assert height >= 400
    assert [path.name for path in tmp_path.iterdir()] == ["loss.png"]


@pytest.mark.parametrize("history", [HISTORY[:1], HISTORY[1:3]], ids=["only evaluations", "only training"])
def test_one_of_the_two_is_enough(tmp_path, history):
    assert draw_loss_curve(history, tmp_path / "loss.png")


def test_nothing_to_draw(tmp_path):
    assert not draw_loss_curve([{"step": 1, "train_runtime": 1.0}], tmp_path / "loss.png")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_training_has_its_curve(tmp_path):
    state = SimpleNamespace(is_world_process_zero=True, log_history=HISTORY)
    with pytest.raises(KeyboardInterrupt), loss_curve(lambda: state, tmp_path / "loss.png"):
        raise KeyboardInterrupt
    assert png_size(tmp_path / "loss.png")


def test_an_error_is_not_hidden_by_one_of_drawing(tmp_path):
    state = SimpleNamespace(is_world_process_zero=True, log_history=HISTORY)
    with pytest.raises(ZeroDivisionError), loss_curve(lambda: state, tmp_path / "nowhere" / "loss.png"):
        raise ZeroDivisionError


def test_only_the_first_process_draws(tmp_path):
    with loss_curve(lambda: SimpleNamespace(is_world_process_zero=False, log_history=HISTORY), tmp_path / "loss.png"):
        pass
    assert list(tmp_path.iterdir()) == []
