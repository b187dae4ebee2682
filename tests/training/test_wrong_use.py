"""Promise: wrong options, files and networks are told in one message, with exit code 2."""

from __future__ import annotations

import re
import socket

import pytest
import torch

from manualgrad.training import command
from tests.training.command_line import QUICK, train


def test_a_crop_larger_than_the_images_is_an_error(digits, tmp_path):
    result = train("--dataset", "fashion-mnist", "--data-dir", digits, "--out", tmp_path, "--crop", 29)
    assert result.returncode == 2
    assert "--crop 29: expected a side from 1 to 28 for images of 28x28, got 29" in result.stderr


def test_layers_that_do_not_fit_the_images_are_reported(digits, tmp_path):
    result = train("--dataset", "fashion-mnist", "--data-dir", digits, "--out", tmp_path, "--channels", 4, 4, 4, 4)
    assert result.returncode == 2
    assert "leave no output" in result.stderr


INVALID = {
    "unknown dataset": (("--dataset", "minst"), "invalid choice: 'minst'"),
    "unknown optimizer": (("--optimizer", "sdg"), "invalid choice: 'sdg'"),
    "unknown schedule": (("--schedule", "cosinus"), "invalid choice: 'cosinus'"),
    "unknown device": (("--device", "gpu"), "invalid choice: 'gpu'"),
    "unknown flag": (("--lr", "0.1"), "unrecognized arguments: --lr"),
    "no epochs": (("--epochs", "0"), "expected a whole number, at least 1, at most 1000000, got '0'"),
    "half an epoch": (("--epochs", "0.5"), "at least 1, at most 1000000, got '0.5'"),
    "more epochs than memory": (("--epochs", "99999999999"), "at least 1, at most 1000000, got '99999999999'"),
    "a number of 400 digits": (("--hidden", "1" + "0" * 400), "at most 1000000, got '1000"),
    "a rate beyond float32": (("--learning-rate", "1e300"), "at most 1e+30, got '1e300'"),
    "an infinite rate": (("--learning-rate", "inf"), "at most 1e+30, got 'inf'"),
    "an empty folder name": (("--data-dir", ""), "argument --data-dir: expected a path, got ''"),
    "empty batches": (("--batch-size", "-4"), "expected a whole number, at least 1, at most 1000000000, got '-4'"),
    "a share of 0": (("--shares", "0.5", "0"), "expected a number, at least 0.001, at most 1, got '0'"),
    "an average over too many steps": (
        ("--average", "1.5"),
        "expected a number, at least 0, at most 1, got '1.5'",
    ),
    "a limit of 0": (("--limit", "0"), "expected a whole number, at least 1, got '0'"),
    "a negative rate": (("--learning-rate", "-1"), "expected a number, at least 0, at most 1e+30, got '-1'"),
    "a rate that is not a number": (("--learning-rate", "nan"), "at least 0, at most 1e+30, got 'nan'"),
    "no percentage": (
        ("--target-accuracy", "0.992"),
        "expected a percentage, such as 99.2, got '0.992'",
    ),
    "a seed beyond 64 bits": (("--seed", str(2**70)), "at most 9223372036854775807"),
    "a seed that is not a number": (
        ("--seed", "x"),
        "expected a whole number, at least 0, at most 9223372036854775807, got 'x'",
    ),
}


@pytest.mark.parametrize("case", INVALID)
def test_invalid_options_give_one_message_and_exit_code_2(case, tmp_path):
    arguments, message = INVALID[case]
    result = train(*arguments, "--out", tmp_path / "out")
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stderr.count("\n") <= 2, "no list of all options"
    assert not (tmp_path / "out").exists(), "nothing is written"


def test_damaged_missing_and_unwritable_files_are_reported(digits, tmp_path):
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    files = sorted((digits / "FashionMNIST" / "raw").iterdir())
    for file in files:
        (raw / file.name).write_bytes(file.read_bytes())
    common = ("--dataset", "fashion-mnist", "--data-dir", tmp_path, "--out", tmp_path / "new" / "out")
    (raw / files[0].name).write_bytes(files[0].read_bytes()[:-1])
    truncated = train(*common)
    (raw / files[0].name).unlink()
    missing = train(*common)
    assert not (tmp_path / "new").exists(), "a refused run leaves no empty folder"
    (tmp_path / "file").write_text("")
    unwritable = train(*common[:4], "--out", tmp_path / "file")
    for result, message in ((truncated, "is truncated"), (missing, "missing"), (unwritable, "cannot be written to")):
        assert result.returncode == 2
        assert message in result.stderr
        assert "Traceback" not in result.stderr
    assert str(raw / files[0].name) in truncated.stderr
    assert str(raw / files[0].name) in missing.stderr


def test_a_diverging_run_is_reported_and_writes_no_results(digits, tmp_path):
    common = ("--dataset", "fashion-mnist", "--data-dir", digits, "--out", tmp_path / "out", *QUICK)
    result = train(*common, "--learning-rate", "1e30")
    assert result.returncode == 1
    assert re.search(r"the loss is (nan|inf) at step \d+ of epoch 1; .* smaller --learning-rate", result.stderr)
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["metrics.jsonl"], "the metrics up to then"


def test_an_interrupted_run_is_reported_and_writes_no_results(digits, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "evaluate", interrupt)
    result = train("--dataset", "fashion-mnist", "--data-dir", digits, "--out", tmp_path / "out", *QUICK)
    assert result.returncode == 130
    assert "interrupted before all results were written" in result.stderr
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["metrics.jsonl"], "the metrics up to then"


def test_a_test_loss_that_is_not_finite_is_reported_and_writes_no_results(digits, tmp_path):
    """After the only step the weights are finite, and too large for the test images."""
    common = ("--dataset", "fashion-mnist", "--data-dir", digits, "--out", tmp_path, "--limit", 64, "--epochs", 1)
    result = train(*common, "--learning-rate", 1e30)
    assert result.returncode == 1
    report = (
        r"train.py: the test loss is (nan|inf) after epoch 1; the first non-finite tensor is the output of \w+, .*"
    )
    assert re.fullmatch(report + r" try a smaller --learning-rate\. No results were written\n", result.stderr)
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_folder_without_the_data_is_not_replaced_by_the_sample(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise socket.gaierror("offline")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    (tmp_path / "digits.csv").write_text("")
    result = train("--data-dir", tmp_path, "--out", tmp_path / "out")
    assert result.returncode == 2
    assert f"train.py: error: mnist is not in {tmp_path} (it has: digits.csv" in result.stderr
    assert "sample" not in result.stdout and "Traceback" not in result.stderr


def test_the_name_of_the_command_is_in_its_messages_and_examples(capsys):
    with pytest.raises(SystemExit):
        command.main(["--help"], prog="python -m manualgrad train")
    text = capsys.readouterr().out
    assert (
        "usage: python -m manualgrad train [-h]" in text and "\npython -m manualgrad train --data-dir DIR  " in text
    )
    assert "torchrun --nproc-per-node=2 -m manualgrad train  " in text and "train.py" not in text


def test_a_folder_with_the_name_of_a_result_is_an_error_before_the_first_step(digits, tmp_path):
    (tmp_path / "weights.pt").mkdir()
    result = train("--dataset", "fashion-mnist", "--data-dir", digits, "--out", tmp_path)
    assert result.returncode == 2
    assert "contains a folder named weights.pt" in result.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_without_a_cuda_device_is_an_error(tmp_path):
    result = train("--device", "cuda", "--out", tmp_path / "out")
    assert result.returncode == 2
    assert "finds no CUDA device" in result.stderr
