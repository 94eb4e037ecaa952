"""What a build decides, and what it says when it cannot go on."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import setup_cuda  # noqa: E402
from setup_cuda import Impossible, Plan, architectures, decide, find_toolkit, gencode, ptxas_report  # noqa: E402


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


def test_forced_cuda_without_a_toolkit_stops_before_anything_is_compiled(tmp_path):
    done = subprocess.run(
        [sys.executable, "setup.py", "build_ext"],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "CUDA_HOME": str(tmp_path), "RESGROW_CUDA": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "resgrow: cannot build: RESGROW_CUDA=1 asks for CUDA kernels, but " in done.stderr
    assert "Traceback" not in done.stderr


def make_toolkit(home: Path, version: str = "13.0") -> Path:
    """Something that looks like a CUDA toolkit; its nvcc tells its version and where it is."""
    for folder in ("bin", "include", "lib64"):
        (home / folder).mkdir(parents=True)
    (home / "include" / "cuda_runtime.h").touch()
    (home / "lib64" / "libcudart.so").touch()
    script = f"#!/bin/sh\nif [ $1 = --dryrun ]; then echo '#$ TOP={home}/bin/..' >&2; exit; fi\n"
    nvcc = home / "bin" / "nvcc"
    nvcc.write_text(f"{script}echo 'Cuda compilation tools, release {version}, V{version}.88'\n", encoding="utf-8")
    nvcc.chmod(0o755)
    return home


@pytest.fixture
def toolkit(tmp_path):
    return make_toolkit(tmp_path / "cuda")


def nowhere(tmp_path):
    return tmp_path / "nowhere"


def test_toolkit_of_the_environment_comes_first(tmp_path, toolkit):
    usual = make_toolkit(tmp_path / "usual", "12.9")
    for name in ("CUDA_HOME", "CUDA_PATH"):
        assert find_toolkit({name: str(toolkit)}, usual).home == toolkit
    found = find_toolkit({"PATH": str(toolkit / "bin")}, usual)
    assert (found.home, found.version, found.nvcc) == (usual, "12.9", usual / "bin" / "nvcc")


def test_toolkit_behind_an_nvcc_on_the_path(tmp_path, toolkit):
    linked, wrapped = tmp_path / "linked", tmp_path / "wrapped"
    linked.mkdir()
    wrapped.mkdir()
    (linked / "nvcc").symlink_to(toolkit / "bin" / "nvcc")
    (wrapped / "nvcc").write_text(f'#!/bin/sh\nexec {toolkit}/bin/nvcc "$@"\n', encoding="utf-8")
    (wrapped / "nvcc").chmod(0o755)
    for folder in (toolkit / "bin", linked, wrapped):
        found = find_toolkit({"PATH": str(folder)}, nowhere(tmp_path))
        assert (found.home, found.libraries) == (toolkit, toolkit / "lib64")


@pytest.mark.parametrize("part", ["bin/nvcc", "include/cuda_runtime.h"])
def test_half_a_toolkit_is_none(tmp_path, toolkit, part):
    (toolkit / part).unlink()
    with pytest.raises(Impossible, match=rf"CUDA_HOME=.* is no complete CUDA toolkit \(it lacks {part}\)"):
        find_toolkit({"CUDA_HOME": str(toolkit)}, nowhere(tmp_path))


def test_a_toolkit_need_not_have_a_runtime_to_link_with(toolkit):
    (toolkit / "lib64" / "libcudart.so").unlink()
    assert find_toolkit({"CUDA_HOME": str(toolkit)}).libraries is None
    (toolkit / "lib").mkdir()
    (toolkit / "lib" / "libcudart.so").touch()
    assert find_toolkit({"CUDA_HOME": str(toolkit)}).libraries == toolkit / "lib"


def test_plan_where_everything_is_there(toolkit):
    plan = decide("13.2", {"CUDA_HOME": str(toolkit)})
    assert plan.toolkit is not None
    assert plan.toolkit.home == toolkit
    assert plan.architectures == ("sm_80", "sm_90", "compute_90")
    assert plan.why == f"CUDA 13.0 in {toolkit}, sm_80 sm_90 compute_90, torch's CUDA 13.2"


@pytest.mark.parametrize(
    ("torch_cuda", "home", "why"),
    [
        (None, "cuda", "this torch is built without CUDA; install a CUDA build of torch"),
        ("13.0", None, "no CUDA toolkit found (CUDA_HOME is not set, no /usr/local/cuda, no nvcc on PATH); install"),
        ("13.0", "nowhere", "is no complete CUDA toolkit (it lacks bin/nvcc, include/cuda_runtime.h)"),
        ("12.9", "cuda", "is CUDA 13.0 and torch is built for 12.9; install the CUDA 12 toolkit and set CUDA_HOME"),
    ],
)
def test_where_something_is_missing_the_plan_says_what_and_force_is_an_error(tmp_path, toolkit, torch_cuda, home, why):
    environment = {"CUDA_HOME": str(tmp_path / home)} if home else {}
    plan = decide(torch_cuda, environment, usual=nowhere(tmp_path))
    assert plan.toolkit is None
    assert why in plan.why
    with pytest.raises(Impossible) as caught:
        decide(torch_cuda, environment | {"RESGROW_CUDA": "1"}, usual=nowhere(tmp_path))
    assert str(caught.value) == f"RESGROW_CUDA=1 asks for CUDA kernels, but {plan.why}"


def test_off_is_off(toolkit):
    plan = decide("13.0", {"CUDA_HOME": str(toolkit), "RESGROW_CUDA": "0"})
    assert plan == Plan(None, (), "switched off by RESGROW_CUDA=0")


def test_other_words_are_refused():
    with pytest.raises(Impossible, match=r"RESGROW_CUDA must be 0 \(off\), 1 \(on\) or unset .* \(got 'yes'\)"):
        decide("13.0", {"RESGROW_CUDA": "yes"})


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        ("", ("sm_80", "sm_90", "compute_90")),
        ("9.0", ("sm_90",)),
        ("8.0;9.0+PTX", ("sm_80", "sm_90", "compute_90")),
        ("8.6 9.0a, 12.0+PTX", ("sm_86", "sm_90a", "sm_120", "compute_120")),
        ("Ampere;Hopper", ("sm_80", "sm_86", "sm_90", "compute_86", "compute_90")),
        ("9.0;9.0+PTX", ("sm_90", "compute_90")),
        ("native", ("sm_80", "sm_90")),
    ],
)
def test_architectures_as_torch_writes_them(wanted, names):
    assert architectures(wanted, lambda: [(9, 0), (9, 0), (8, 0)]) == names


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("sm_90", r"TORCH_CUDA_ARCH_LIST must be like .* \(got 'sm_90' in 'sm_90'\)"),
        ("8.0;Volta", r"got 'Volta' in '8.0;Volta'"),
        ("7.5", r"need compute capability 8.0 or newer \(got 7.5"),
        ("native", "no CUDA device is visible"),
    ],
)
def test_architectures_that_cannot_be(wanted, message):
    with pytest.raises(Impossible, match=message):
        architectures(wanted)


def test_options_for_nvcc():
    assert gencode(("sm_80", "compute_90")) == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90,code=compute_90",
    ]


LOG = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN7resgrow1bE' for 'sm_90'
ptxas info    : Function properties for _ZN7resgrow1bE
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 8 bytes cumulative stack size, 400 bytes smem
ptxas info    : Compile time = 12.3 ms
ptxas info    : Compiling entry function '_ZN7resgrow1aE' for 'sm_90'
ptxas info    : Function properties for _ZN7resgrow1aE
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers, used 0 barriers
x.cu(3): warning #177-D: variable "i" was declared but never referenced
"""


def test_report_of_ptxas(monkeypatch):
    monkeypatch.setattr(setup_cuda, "_readable", lambda names: [name[3:-1] for name in names])
    plan = Plan(None, ("sm_90",), "why")
    assert [line.split() for line in ptxas_report(plan, {"file": LOG}).splitlines()] == [
        ["#", "why"],
        ["arch", "registers", "stack", "st.spilled", "ld.spilled", "shared", "kernel"],
        ["sm_90", "32", "0", "0", "0", "0", "file:", "7resgrow1a"],
        ["sm_90", "255", "8", "4", "12", "400", "file:", "7resgrow1b"],
        ["x.cu(3):", "warning", "#177-D:", "variable", '"i"', "was", "declared", "but", "never", "referenced"],
    ]
