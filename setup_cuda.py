"""The CUDA half of the build: is there to be one, with which toolkit, for which architectures; compiles the kernels.

Kernels (csrc/cuda/kernels/*.cu) know nothing of torch, so torch's build helper has no part in them: nvcc gets one
include path, csrc. Their objects are linked into resgrow._C_cuda beside the glue (csrc/cuda/*.cpp), which the host
compiler compiles.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

DEFAULT_ARCHITECTURES = "8.0;9.0+PTX"
OLDEST = (8, 0)  # cp.async, bfloat16 products
# Torch's names for generations that the kernels run on.
NAMED = {"Ampere": "8.0;8.6+PTX", "Ada": "8.9+PTX", "Hopper": "9.0+PTX", "Blackwell": "10.0;12.0+PTX"}


class Impossible(Exception):
    """CUDA kernels cannot be built; says what is missing and the remedy."""


@dataclass(frozen=True)
class Toolkit:
    """A CUDA toolkit with a compiler and headers. ``version``: "13.0"."""

    home: Path
    version: str

    @property
    def nvcc(self) -> Path:
        return self.home / "bin" / "nvcc"

    @property
    def include(self) -> Path:
        return self.home / "include"

    @property
    def libraries(self) -> Path | None:
        """Where its runtime library is, if it has one to link with."""
        folders = (self.home / "lib64", self.home / "lib", self.home / "targets" / "x86_64-linux" / "lib")
        return next((folder for folder in folders if (folder / "libcudart.so").exists()), None)


@dataclass(frozen=True)
class Plan:
    """What was decided. Without a toolkit there is nothing to build. ``architectures``: "sm_90", "compute_90"."""

    toolkit: Toolkit | None
    architectures: tuple[str, ...]
    why: str


def _missing(home: Path) -> str | None:
    """What ``home`` lacks to be a toolkit."""
    parts = ("bin/nvcc", "include/cuda_runtime.h")
    return ", ".join(part for part in parts if not (home / part).exists()) or None


def _behind(nvcc: str) -> Path:
    """The toolkit that an nvcc on the path belongs to. It may be a link or a script that calls the real one."""
    home = Path(nvcc).resolve().parent.parent
    if _missing(home) is None:
        return home
    done = subprocess.run([nvcc, "--dryrun", "-E", "-x", "cu", os.devnull], capture_output=True, text=True, check=False)
    top = re.search(r"^#\$ TOP=(.+)$", done.stderr, re.MULTILINE)
    return Path(top.group(1).strip()).resolve() if top else home


def find_toolkit(environment: Mapping[str, str], usual: Path = Path("/usr/local/cuda")) -> Toolkit:
    """The toolkit in CUDA_HOME (or CUDA_PATH), else the usual place, else behind an nvcc on the path."""
    named = environment.get("CUDA_HOME") or environment.get("CUDA_PATH")
    on_path = shutil.which("nvcc", path=environment.get("PATH", ""))
    if named:
        home, where = Path(named), f"CUDA_HOME={named}"
    elif usual.exists():
        home, where = usual, str(usual)
    elif on_path:
        home, where = _behind(on_path), f"{on_path} on PATH"
    else:
        raise Impossible("no CUDA toolkit found (CUDA_HOME is not set, no /usr/local/cuda, no nvcc on PATH)")
    missing = _missing(home)
    if missing:
        raise Impossible(f"{where} is no complete CUDA toolkit (it lacks {missing})")
    done = subprocess.run([str(home / "bin" / "nvcc"), "--version"], capture_output=True, text=True, check=False)
    release = re.search(r"release (\d+\.\d+)", done.stdout)
    if release is None:
        raise Impossible(f"{home}/bin/nvcc does not say its version ({(done.stdout + done.stderr).strip()[:200]})")
    return Toolkit(home.resolve(), release.group(1))


def architectures(wanted: str, native: Callable[[], Sequence[tuple[int, int]]] = tuple) -> tuple[str, ...]:
    """Torch's TORCH_CUDA_ARCH_LIST, such as "8.0;9.0+PTX" -> ("sm_80", "sm_90", "compute_90").

    ``native``: capabilities of the visible devices, for the word "native".
    """
    wanted = wanted.strip() or DEFAULT_ARCHITECTURES
    if wanted == "native":
        wanted = ";".join(f"{major}.{minor}" for major, minor in sorted(set(native())))
        if not wanted:
            raise Impossible("TORCH_CUDA_ARCH_LIST=native, but no CUDA device is visible; name architectures")
    names: list[str] = []
    for item in re.split(r"[;,\s]+", wanted):
        names += NAMED.get(item, item).split(";")
    machine, portable = [], []
    for name in names:
        parsed = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", name)
        if parsed is None:
            raise Impossible(
                f'TORCH_CUDA_ARCH_LIST must be like "{DEFAULT_ARCHITECTURES}" (got {name!r} in {wanted!r}); '
                f"known names: {', '.join(NAMED)}, native"
            )
        if (int(parsed[1]), int(parsed[2])) < OLDEST:
            raise Impossible(f"the kernels need compute capability 8.0 or newer (got {name} in TORCH_CUDA_ARCH_LIST)")
        number = parsed[1] + parsed[2] + parsed[3]
        machine.append(f"sm_{number}")
        if parsed[4]:
            portable.append(f"compute_{number}")
    return tuple(dict.fromkeys(machine + portable))


def gencode(names: Sequence[str]) -> list[str]:
    """("sm_90", "compute_90") -> nvcc's options: machine code and PTX."""
    return [f"-gencode=arch=compute_{name.partition('_')[2]},code={name}" for name in names]


def decide(
    torch_cuda: str | None,
    environment: Mapping[str, str],
    native: Callable[[], Sequence[tuple[int, int]]] = tuple,
    usual: Path = Path("/usr/local/cuda"),
) -> Plan:
    """Whether to build CUDA kernels. ``torch_cuda``: torch.version.cuda. RESGROW_CUDA=1 forces, =0 switches off.

    Raises Impossible where they are forced and something is missing, or an option cannot be understood.
    """
    wanted = environment.get("RESGROW_CUDA", "")
    if wanted not in ("", "0", "1"):
        raise Impossible(f"RESGROW_CUDA must be 0 (off), 1 (on) or unset (on where possible) (got {wanted!r})")
    if wanted == "0":
        return Plan(None, (), "switched off by RESGROW_CUDA=0")
    try:
        toolkit = _fitting_toolkit(torch_cuda, environment, usual)
    except Impossible as error:
        if wanted == "1":
            raise Impossible(f"RESGROW_CUDA=1 asks for CUDA kernels, but {error}") from None
        return Plan(None, (), str(error))
    names = architectures(environment.get("TORCH_CUDA_ARCH_LIST", ""), native)
    why = f"CUDA {toolkit.version} in {toolkit.home}, {' '.join(names)}, torch's CUDA {torch_cuda}"
    return Plan(toolkit, names, why)


def _fitting_toolkit(torch_cuda: str | None, environment: Mapping[str, str], usual: Path) -> Toolkit:
    if torch_cuda is None:
        raise Impossible("this torch is built without CUDA; install a CUDA build of torch (pytorch.org says how)")
    major = torch_cuda.partition(".")[0]
    remedy = f"install the CUDA {major} toolkit and set CUDA_HOME to its folder"
    try:
        toolkit = find_toolkit(environment, usual)
    except Impossible as error:
        raise Impossible(f"{error}; {remedy}") from None
    if toolkit.version.partition(".")[0] != major:
        raise Impossible(f"{toolkit.home} is CUDA {toolkit.version} and torch is built for {torch_cuda}; {remedy}")
    return toolkit


def _ninja_file(plan: Plan, sources: Sequence[Path], csrc: Path, jobs: int, environment: Mapping[str, str]) -> str:
    """One rule per kernel file. What nvcc and ptxas say is kept beside the object, and shown where it fails."""
    assert plan.toolkit is not None
    flags = ["-std=c++17", "-O3", "-lineinfo", "-Xptxas=-v", "-Xcompiler=-fPIC,-fvisibility=hidden", f"-I{csrc}"]
    if environment.get("CXX"):
        flags.append(f"-ccbin={shlex.split(environment['CXX'])[0]}")
    # Files are compiled side by side; what cores are left over compile one file's architectures side by side.
    threads = max(1, min(len(plan.architectures), jobs // len(sources)))
    command = [str(plan.toolkit.nvcc), *flags, *gencode(plan.architectures), f"--threads={threads}"]
    text = (
        f"rule kernel\n"
        f"  command = {shlex.join(command).replace('$', '$$')} -MD -MF $out.d -c $in -o $out > $out.log 2>&1"
        f" || {{ cat $out.log; exit 1; }}\n"
        f"  description = nvcc $in\n  depfile = $out.d\n  deps = gcc\n\n"
    )
    return text + "".join(
        f"build {source.stem}.o: kernel {str(source).replace('$', '$$').replace(' ', '$ ').replace(':', '$:')}\n"
        for source in sources
    )


def compile_kernels(
    plan: Plan, sources: Sequence[Path], csrc: Path, folder: Path, environment: Mapping[str, str]
) -> list[Path]:
    """Compiles what has changed, into ``folder``. Returns the objects; nvcc's messages are beside each, in .o.log."""
    folder.mkdir(parents=True, exist_ok=True)
    jobs = int(environment.get("MAX_JOBS") or os.cpu_count() or 1)
    text = _ninja_file(plan, sources, csrc, jobs, environment)
    build = folder / "build.ninja"
    if not build.exists() or build.read_text(encoding="utf-8") != text:
        build.write_text(text, encoding="utf-8")
    done = subprocess.run(["ninja", "-C", str(folder), "-j", str(jobs)], check=False)
    if done.returncode:
        raise Impossible("nvcc failed; its messages are above")
    return [folder / f"{source.stem}.o" for source in sources]


def _readable(names: Sequence[str]) -> list[str]:
    """Names with template arguments, without parameters; mangled where binutils are not there."""
    if not names or not shutil.which("c++filt"):
        return list(names)
    done = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    clutter = re.compile(r"^void |\(anonymous namespace\)::|resgrow::|(?<=[\w>])\([^<]*(<[^()]*>[^<]*)*\)$")
    return [clutter.sub("", name) for name in done.stdout.splitlines()]


_KERNEL = re.compile(
    r"Compiling entry function '(?P<kernel>\w+)' for '(?P<arch>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads\n"
    r".*?Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)
_COLUMNS = ("arch", "registers", "stack", "st.spilled", "ld.spilled", "shared")


def ptxas_report(plan: Plan, logs: Mapping[str, str]) -> str:
    """A table of what ptxas said of each file's kernels on each architecture, in bytes, and under it any warnings."""
    found = [match for log in logs.values() for match in _KERNEL.finditer(log)]
    files = [file for file, log in logs.items() for _ in _KERNEL.finditer(log)]
    rows = []
    for file, match, name in zip(files, found, _readable([match["kernel"] for match in found]), strict=True):
        shared = re.search(r"(\d+) bytes smem", match["rest"])
        cells = [*match.group("arch", "registers", "stack", "stores", "loads"), shared[1] if shared else "0"]
        rows.append((f"{file}: {name}", cells))
    table = [("kernel", list(_COLUMNS)), *sorted(rows)]
    lines = ["".join(f"{cell:>11}" for cell in cells) + f"  {name}" for name, cells in table]
    warnings = [line for log in logs.values() for line in log.splitlines() if "warning" in line.lower()]
    return "\n".join([f"# {plan.why}", *lines, *warnings]) + "\n"
