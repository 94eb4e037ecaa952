from __future__ import annotations

import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

import resgrow.info
from resgrow.cli import main


def test_info_tells_what_a_bug_report_needs(capsys):
    assert main(["info"]) == 0
    rows = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    rows = {name.strip(): value.strip() for name, value in rows.items()}
    assert rows["python"] == platform.python_version()
    assert rows["torch"] == torch.__version__
    assert "in use; compiled: base" in rows["instruction set"]
    assert rows["threads"].startswith(f"{torch.get_num_threads()} of ")
    assert {"resgrow", "compiler", "CUDA kernels", "CUDA devices"} <= rows.keys()


class Library:
    """What resgrow.info asks of resgrow._C_cuda."""

    @staticmethod
    def build_info():
        return {"toolkit": "13.0", "architectures": ["sm_80", "compute_90"]}


@pytest.mark.parametrize(
    ("version", "library", "text"),
    [
        (None, None, "none: this torch is built without CUDA"),
        ("13.0", None, "none: built without; set CUDA_HOME and build again with RESGROW_CUDA=1"),
        ("13.0", Library, "sm_80, compute_90; by CUDA 13.0"),
    ],
)
def test_info_tells_of_cuda_kernels_or_why_there_are_none(monkeypatch, version, library, text):
    monkeypatch.setattr(torch.version, "cuda", version)
    monkeypatch.setattr(resgrow.info, "_C_cuda", library)
    assert resgrow.info.cuda_kernels() == text


def test_info_names_devices(monkeypatch):
    devices = [SimpleNamespace(name="NVIDIA H200", major=9, minor=0), SimpleNamespace(name="A", major=8, minor=0)]
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", devices.__getitem__)
    assert resgrow.info.cuda_devices() == "cuda:0 NVIDIA H200 (9.0), cuda:1 A (8.0)"


def test_info_says_why_there_is_no_device(monkeypatch):
    def no_driver():
        raise RuntimeError("Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU")

    monkeypatch.setattr(torch.cuda, "init", no_driver)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert resgrow.info.cuda_devices() == "none: this torch is built without CUDA"
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert resgrow.info.cuda_devices() == "none: Found no NVIDIA driver on your system"


@pytest.mark.parametrize("command", ["info", "fit", "saliency", "count", "bench", "report"])
def test_help_has_examples(capsys, command):
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "example" in text
    assert f"  resgrow {command}" in text


@pytest.mark.parametrize("arguments", [[], ["fly"], ["fit", "--wings"], ["fit", "--epochs", "many"]])
def test_usage_errors(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: resgrow" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (["--model", "vgg"], "--model must be one of"),
        (["--budget", "params=0"], "a budget must be positive"),
        (["--budget", "params=2.5"], "whole number above 1"),
        (["--budget", "params=0.001"], "must be reachable"),
        (["--budget", "macs=10"], "must be reachable"),
        (["--model", "lenet5"], "image_size must be at least 16"),
        (["--data", "no/such/folder"], "existing folder"),
        (["--threads", "0"], "--threads must be at least 1"),
        (["--width", "0"], "--width must be positive"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_no_folder(capsys, tmp_path, arguments, rule):
    assert main(["fit", "--out", str(tmp_path / "run"), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("resgrow: error: ")
    assert rule in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_missing_mnist_is_one_line(capsys, tmp_path, monkeypatch):
    monkeypatch.delenv("RESGROW_DATA_DIR", raising=False)
    assert main(["fit", "--data", "mnist", "--data-dir", str(tmp_path), "--out", str(tmp_path / "run")]) == 2
    assert "train-images-idx3-ubyte" in capsys.readouterr().err


def test_used_run_folder_is_one_line_and_untouched(capsys, tmp_path):
    (tmp_path / "status.json").write_text("precious")
    assert main(["fit", "--out", str(tmp_path)]) == 2
    assert "must not hold a run yet" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


def test_unexpected_errors_keep_their_traceback(monkeypatch):
    def broken():
        raise KeyError("a bug")

    monkeypatch.setattr(resgrow.info, "report", broken)
    with pytest.raises(KeyError, match="a bug"):
        main(["info"])


def test_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "resgrow", "fit", "--budget", "x"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("resgrow: error: fit: a budget has params, ")
    assert "Traceback" not in done.stderr
