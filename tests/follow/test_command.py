"""Promise: the command ``follow`` takes weights of a training, and tells wrong use in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from manualgrad import DocumentCNN, extras
from manualgrad.follow import command
from manualgrad.follow.command import main
from manualgrad.follow.training import normalize
from tests.follow.conftest import LIMIT, read_page


def test_weights_of_the_training_command(tmp_path, capsys, dataset):
    torch.save(DocumentCNN(1, 24).state_dict(), tmp_path / "weights.pt")
    out = tmp_path / "new" / "folder"
    assert main(["--weights", str(tmp_path / "weights.pt"), "--image", "5", "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out / 'follow.html'}: open it in a browser\n"
    html = (out / "follow.html").read_text(encoding="utf-8")
    assert len(html.encode()) < LIMIT and 'type="range"' not in html
    page = read_page(html, {})
    crop = normalize(dataset.center_crop(24).test.images[5], dataset)[0]
    assert page.quantities(0)["z0"].shape == (20, 20, 16)
    np.testing.assert_array_equal(page.quantities(0)["x0"][..., 0], crop)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--image", "-1"], "--image -1: expected an index from 0 to 1,999"),
        (["--image", "2000"], "--image 2000: expected an index from 0 to 1,999"),
        (["--weights", "none.pt"], "none.pt cannot be read: No such file or directory"),
        (["--weights", "."], ". cannot be read: Is a directory"),
        (["--weights", "text.pt"], "text.pt is not a weights file: expected weights.pt of `train`"),
        (["--weights", "list.pt"], "list.pt is not a weights file"),
        (
            ["--weights", "three.pt"],
            "two convolutions and two dense layers, as equation (22) has them; got conv0.bias,",
        ),
        (["--weights", "large.pt"], "for images of at most 28x28; got conv0.weight (16, 1, 5, 5)"),
        (["--weights", "nan.pt"], "nan.pt: expected finite weights, got NaN or infinity"),
        (["--weights", "letters.pt"], "letters.pt is not a weights file"),
        (["--weights", "complex.pt"], "complex.pt is not a weights file"),
        (["--weights", "five.pt"], "five.pt: expected at least 10 classes, got 5"),
        (["--weights", "huge.pt"], "huge.pt: with these weights, a quantity of test image 23 is NaN or infinity"),
        (["--seed", str(2**63)], f"--seed {2**63}: expected an integer from 0 to {2**63 - 1}"),
        (["--out", "text.pt"], "--out text.pt cannot be written to: expected a folder, got a file"),
        (["--out", "taken"], "--out taken cannot be written to: follow.html in it is a folder"),
    ],
)
def test_a_wrong_option_or_file_is_one_line_and_exit_code_2(
    arguments, expected, dataset, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "bundled_sample", lambda: dataset)
    Path("text.pt").write_text("not a weights file")
    torch.save([1, 2], "list.pt")
    torch.save(DocumentCNN(hidden=()).state_dict(), "three.pt")
    torch.save(DocumentCNN(1, 40).state_dict(), "large.pt")
    Path("letters.pt").write_bytes(b"abc" * 100)  # an error of its own in torch.load
    Path("taken/follow.html").mkdir(parents=True)
    torch.save(DocumentCNN(channels=(2, 2), hidden=(2,), classes=5).state_dict(), "five.pt")
    torch.save(
        {name: 1e30 * w for name, w in DocumentCNN(channels=(2, 2), hidden=(2,)).state_dict().items()}, "huge.pt"
    )
    torch.save({"conv0.weight": torch.zeros(2, dtype=torch.complex64)}, "complex.pt")
    weights = DocumentCNN(channels=(2, 2), hidden=(2,)).state_dict()
    weights["dense3.bias"][0] = torch.nan
    torch.save(weights, "nan.pt")
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("python -m manualgrad follow: error: ")
    assert expected in error
    assert not Path("runs/follow/follow.html").exists()


def test_ctrl_c_is_one_line_and_exit_code_130(dataset, tmp_path, monkeypatch, capsys):
    def interrupt(*_arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "bundled_sample", lambda: dataset)
    monkeypatch.setattr(command, "make_page", interrupt)
    assert main(["--out", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "python -m manualgrad follow: interrupted, no page was written\n"
    assert not list(tmp_path.iterdir())


def test_without_the_extra_the_command_names_it(monkeypatch, capsys):
    monkeypatch.setattr(extras, "find_import_problem", lambda modules: "No module named 'jinja2'.")
    assert main([]) == 2
    error = "python -m manualgrad follow: error: the page needs the extra \"report\": No module named 'jinja2'.\n"
    assert capsys.readouterr().err == error
