"""What a build says when it cannot go on."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"PATH": ""}, "no C++ compiler found (looked for c++, g++). Install one"),
        ({"PATH": "", "CXX": "clang++-99"}, "no C++ compiler found (looked for clang++-99)"),
    ],
)
def test_without_a_compiler_one_error_says_what_to_install(environment, message):
    done = subprocess.run(
        [sys.executable, "setup.py", "build_ext"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr
