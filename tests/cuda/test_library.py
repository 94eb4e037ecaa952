"""The CUDA library, as far as it can be checked without a GPU."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import torch

from resgrow._load import _C_cuda

ROOT = Path(__file__).resolve().parents[2]
OPERATORS = sorted(name for name in torch._C._dispatch_get_all_op_names() if name.startswith("resgrow::"))
# Where RESGROW_CUDA=1 asks for the library, its absence is a failure.
built = pytest.mark.skipif(
    _C_cuda is None and os.environ.get("RESGROW_CUDA") != "1", reason="built without CUDA kernels"
)


@built
def test_library_is_loaded_with_the_package():
    info = _C_cuda.build_info()
    assert re.fullmatch(r"\d+\.\d+", info["toolkit"])
    assert info["toolkit"].partition(".")[0] == torch.version.cuda.partition(".")[0]
    assert any(name.startswith("sm_") for name in info["architectures"])


@built
@pytest.mark.parametrize("operator", OPERATORS)
def test_every_operator_has_a_cuda_kernel(operator):
    assert _C_cuda is not None
    assert torch._C._dispatch_has_kernel_for_dispatch_key(operator, "CUDA")


@built
def test_library_needs_no_more_of_cuda_than_the_runtime_and_c10():
    """What a bare toolkit and any CUDA build of torch have; no cuBLAS, cuSPARSE, libtorch_cuda."""
    done = subprocess.run(["readelf", "-d", _C_cuda.__file__], capture_output=True, text=True, check=True)
    needed = set(re.findall(r"NEEDED.*\[lib([\w+]+)\.so", done.stdout))
    assert "c10_cuda" in needed
    assert not {name for name in needed if name.startswith(("cu", "torch_cuda", "nv"))} - {"cudart"}


@pytest.fixture(scope="module")
def report():
    """The rows of the build's report of ptxas: (architecture, registers, stack, spilled stores and loads, kernel)."""
    if Path(_C_cuda.__file__).parent != ROOT / "resgrow":
        pytest.skip("the library was not built in this folder")
    lines = (ROOT / "build" / "ptxas.txt").read_text(encoding="utf-8").splitlines()
    rows = [line.split(None, 6) for line in lines[2:] if line.lstrip().startswith("sm_")]
    assert len(rows) == len(lines) - 2, f"warnings of nvcc: {lines[2 + len(rows) :]}"
    return [(row[0], *map(int, row[1:5]), row[6]) for row in rows]


@built
def test_every_kernel_is_compiled_for_every_architecture(report):
    wanted = [name for name in _C_cuda.build_info()["architectures"] if name.startswith("sm_")]
    kernels = {kernel for *_, kernel in report}
    assert kernels
    assert {(kernel, row[0]) for *row, kernel in report} == {(kernel, name) for kernel in kernels for name in wanted}


@built
def test_no_kernel_spills_registers(report):
    assert [row for row in report if any(row[2:5])] == []


@pytest.mark.skipif(_C_cuda is not None, reason="built with CUDA kernels")
@pytest.mark.parametrize("operator", OPERATORS)
def test_without_kernels_a_cuda_tensor_gets_an_error_with_the_remedy(operator):
    name = operator.partition("::")[2]
    schema = getattr(torch.ops.resgrow, name).default._schema
    assert torch._C._dispatch_has_kernel_for_dispatch_key(operator, "CUDA")
    zeros = {
        "Tensor": torch.zeros(1),
        "Optional[Tensor]": None,
        "int": 1,
        "float": 1.0,
        "bool": True,
        "List[Tensor]": [torch.zeros(1)],
    }
    arguments = [zeros.get(str(argument.type), [1, 1]) for argument in schema.arguments]
    cuda = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    with pytest.raises(
        NotImplementedError, match=r"no CUDA kernels .*; move model and data to the CPU, or set CUDA_HOME"
    ):
        getattr(torch.ops.resgrow, name).default.redispatch(cuda, *arguments)
