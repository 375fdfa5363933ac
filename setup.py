"""Builds the compiled parts; the package works without any of them. The rest of its description is in pyproject.toml.

llpf_fast/_C.so       torch ops for the CPU, torch's stable ABI, no Python: one file for every Python and torch >= 2.11
llpf_fast/_C_cuda.so  torch ops for CUDA, likewise
llpf_fast/_core...so  the CPU kernels for NumPy and other buffers, pybind11, per Python version

LLPF_CPP=1|0   require or skip _C and _core; unset: a failure is a warning
LLPF_CUDA=1|0  require or skip _C_cuda; unset: built where there is a CUDA toolkit and torch was built for CUDA
CUDA_HOME, TORCH_CUDA_ARCH_LIST (default "9.0+PTX"), CXX, CXXFLAGS, MAX_JOBS (default 2)  as usual
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path
from zlib import crc32

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
# setuptools' directory for objects is a new temporary one in every editable install.
BUILD = ROOT / "build" / "native"
CXX = shlex.split(os.environ.get("CXX", "c++"))
OPTIMISE = ["-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-Wall", "-Wextra"]
STABLE_ABI = ["-DTORCH_STABLE_ONLY", "-DTORCH_TARGET_VERSION=0x020b000000000000"]
X86 = platform.machine().lower() in ("x86_64", "amd64")
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mprefer-vector-width=512"]
# GCC 12 warns inside its own AVX-512 intrinsics.
ISA_FLAGS = {"isa_avx2.cpp": AVX2, "isa_avx512.cpp": [*AVX512, "-Wno-uninitialized", "-Wno-maybe-uninitialized"]}


@dataclass
class Part:
    """One shared library.

    Attributes:
        required: a failure ends the build instead of leaving the part out.
        compile: command of each source.
    """

    name: str
    required: bool
    compile: dict[Path, list[str]] = field(default_factory=dict)
    link: list[str] = field(default_factory=list)

    @property
    def file(self) -> Path:
        return BUILD / f"{self.name}.so"


def switch(variable: str) -> bool | None:
    """Whether the environment variable is on; None where it is not set."""
    value = os.environ.get(variable, "")
    return None if value == "" else value != "0"


def torch_paths() -> tuple[Path, str, str | None] | None:
    """Torch's directory, version and CUDA version; None without torch."""
    try:
        import torch
    except Exception as error:  # a broken torch may raise anything
        print(f"llpf_fast: no torch in the build environment ({error}); building without torch ops", file=sys.stderr)
        return None
    return Path(torch.__file__).parent, torch.__version__, torch.version.cuda


def core_sources(define: list[str]) -> dict[Path, list[str]]:
    """The CPU kernels, without torch; each instruction set beyond the baseline is one file."""
    flags = [*CXX, *OPTIMISE, *shlex.split(os.environ.get("CXXFLAGS", "")), *define, *(["-DLLPF_X86"] if X86 else [])]
    sources = sorted((ROOT / "csrc/core/cpu").glob("*.cpp"))
    return {source: flags + ISA_FLAGS.get(source.name, []) for source in sources if X86 or source.name not in ISA_FLAGS}


def first_line(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip().splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "unknown"


def cpu_part(torch: tuple[Path, str, str | None]) -> Part:
    home, version, _ = torch
    build = f"torch {version}, {first_line(*CXX, '--version')}"
    part = Part("_C", required=switch("LLPF_CPP") is True, compile=core_sources([]))
    include = [f"-isystem{home}/include", f"-isystem{home}/include/torch/csrc/api/include"]
    part.compile[ROOT / "csrc/torch/ops.cpp"] = [*CXX, *OPTIMISE, "-O2", *STABLE_ABI, *include]
    part.compile[ROOT / "csrc/torch/build.cpp"] = [*CXX, *OPTIMISE, f'-DLLPF_BUILD="{build}"']
    part.link = [*CXX, "-shared", f"-L{home}/lib", "-ltorch_cpu"]
    return part


def python_part() -> Part | None:
    try:
        import pybind11
    except ImportError:
        print("llpf_fast: no pybind11 in the build environment; building without llpf_fast._core", file=sys.stderr)
        return None
    part = Part("_core", required=switch("LLPF_CPP") is True, compile=core_sources([]))
    include = [f"-isystem{pybind11.get_include()}", f"-isystem{sysconfig.get_paths()['include']}"]
    for source in sorted((ROOT / "csrc/python").glob("*.cpp")):
        part.compile[source] = [*CXX, *OPTIMISE, "-O2", *include]
    part.link = [*CXX, "-shared"]
    return part if (ROOT / "csrc/python").is_dir() else None


def cuda_home() -> Path | None:
    """The toolkit: a directory with nvcc and headers. The nvcc on PATH may be a wrapper in another directory."""
    nvcc = shutil.which("nvcc")
    parent = str(Path(nvcc).resolve().parent.parent) if nvcc else None
    for home in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), parent, nvcc and "/usr/local/cuda"):
        if home and (Path(home) / "bin/nvcc").exists() and (Path(home) / "include/cuda_runtime.h").exists():
            return Path(home).resolve()
    return None


def architectures() -> list[str]:
    flags = []
    for name in re.split(r"[\s;,]+", os.environ.get("TORCH_CUDA_ARCH_LIST") or "9.0+PTX"):
        number = name.removesuffix("+PTX").replace(".", "")
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if name.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def cuda_part(torch: tuple[Path, str, str | None]) -> Part | None:
    home, version, cuda = torch
    required, toolkit = switch("LLPF_CUDA"), cuda_home()
    if required is False or (required is None and (toolkit is None or cuda is None)):
        return None
    if toolkit is None:
        raise SystemExit("llpf_fast: LLPF_CUDA=1, but no CUDA toolkit: set CUDA_HOME or put nvcc on PATH")
    nvcc = str(toolkit / "bin/nvcc")
    build = f"torch {version}, {first_line(nvcc, '--version')} {toolkit.name}"
    include = [f"-isystem{home}/include", f"-isystem{toolkit}/include"]
    part = Part("_C_cuda", required=required is True)
    host = [option for flag in ("-fPIC", "-fvisibility=hidden") for option in ("-Xcompiler", flag)]
    for source in sorted((ROOT / "csrc/core/cuda").glob("*.cu")):
        # No --use_fast_math and no contraction, so that results have the same bits as on the CPU.
        part.compile[source] = [nvcc, "-std=c++20", "-O3", "--fmad=false", "-ccbin", CXX[0], *host, *architectures()]
    for source in (ROOT / "csrc/torch/ops.cpp", ROOT / "csrc/torch/cuda_while.cpp"):
        part.compile[source] = [*CXX, *OPTIMISE, "-O2", *STABLE_ABI, "-DUSE_CUDA", *include]
    part.compile[ROOT / "csrc/torch/build.cpp"] = [*CXX, *OPTIMISE, f'-DLLPF_BUILD="{build}"']
    libraries = next((toolkit / name for name in ("lib64", "lib") if (toolkit / name).is_dir()), toolkit)
    part.link = [*CXX, "-shared", f"-L{home}/lib", f"-L{libraries}", "-ltorch_cpu", "-ltorch_cuda", "-lcudart"]
    return part if any(source.suffix == ".cu" for source in part.compile) else None


def parts() -> list[Part]:
    torch = torch_paths()
    chosen: list[Part | None] = []
    if switch("LLPF_CPP") is not False:
        if torch is None and switch("LLPF_CPP"):
            raise SystemExit("llpf_fast: LLPF_CPP=1 needs torch in the build environment")
        chosen += [torch and cpu_part(torch), python_part()]
    if torch is not None:
        chosen.append(cuda_part(torch))
    elif switch("LLPF_CUDA"):
        raise SystemExit("llpf_fast: LLPF_CUDA=1 needs torch in the build environment")
    return [part for part in chosen if part]


def write_ninja(path: Path, parts: list[Part]) -> None:
    """Write the build file. An object is named by its source and command, so that _core and _C share kernels."""
    from ninja.ninja_syntax import Writer, escape_path

    with path.open("w") as file:
        ninja = Writer(file, width=1 << 16)
        command = "$compiler -MD -MF $out.d -c $in -o $out"
        ninja.rule("compile", command, depfile="$out.d", deps="gcc", description="$in")
        ninja.rule("link", "$linker $in -o $out $libraries", description="$out")
        objects_written = set()
        for part in parts:
            objects = []
            for source, command in part.compile.items():
                compiler = shlex.join(command).replace("$", "$$")
                key = crc32(f"{source} {compiler}".encode())
                objects.append(escape_path(str(BUILD / f"{source.stem}-{key:08x}.o")))
                if objects[-1] not in objects_written:
                    ninja.build(objects[-1], "compile", escape_path(str(source)), variables={"compiler": compiler})
                    objects_written.add(objects[-1])
            flags = [flag for flag in part.link if not flag.startswith("-l")]
            libraries = [flag for flag in part.link if flag.startswith("-l")]
            line = {"linker": shlex.join(flags), "libraries": shlex.join(libraries)}
            ninja.build(str(part.file), "link", objects, variables=line)


class Build(build_ext):
    """Builds the parts with ninja and puts them where setuptools expects extensions."""

    def get_ext_filename(self, fullname: str) -> str:
        if fullname.rpartition(".")[2] in ("_C", "_C_cuda"):  # asked with and without the package
            return f"{fullname.replace('.', '/')}.so"
        return super().get_ext_filename(fullname)

    def build_extensions(self) -> None:
        failed = {}
        for name, part in PARTS.items():
            try:
                BUILD.mkdir(parents=True, exist_ok=True)
                self.build(part)
            except (OSError, ImportError, subprocess.CalledProcessError) as error:
                if part.required:
                    raise SystemExit(f"llpf_fast: {name} failed to build, and it was required: {error}") from error
                failed[name] = error
                if getattr(self, "editable_mode", False):  # else the library of older sources would be loaded
                    (ROOT / self.get_ext_filename(name)).unlink(missing_ok=True)
        for name, error in failed.items():
            self.warn(f"llpf_fast works without {name}, but slower; it failed to build: {error}")

    def build(self, part: Part) -> None:
        import ninja

        write_ninja(BUILD / "build.ninja", list(PARTS.values()))
        jobs = os.environ.get("MAX_JOBS", "2")
        command = [str(Path(ninja.BIN_DIR) / "ninja"), "-C", str(BUILD), "-j", jobs, str(part.file)]
        subprocess.run(command, check=True)
        target = Path(self.get_ext_fullpath(f"llpf_fast.{part.name}"))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)  # a running process keeps the old file
        shutil.copy2(part.file, target)


PARTS = {f"llpf_fast.{part.name}": part for part in parts()}

setup(
    # The Triton kernels stay at the top level of the repository, where they are looked for, and are installed inside.
    packages=[*find_packages(include=["llpf_fast*"]), "llpf_fast.kernels"],
    ext_modules=[Extension(name, sources=[], optional=not part.required) for name, part in PARTS.items()],
    cmdclass={"build_ext": Build},
)
