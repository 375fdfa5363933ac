"""Installing: with a compiler and without one, editable and isolated, and the messages."""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="no sources beside these tests")

#: A name that no compiler has.
NO_COMPILER = {"CXX": "/nowhere/c++", "LLPF_CUDA": "0"}


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """The sources alone: nothing built, nothing ignored."""
    copy = tmp_path / "sources"
    ignore = shutil.ignore_patterns("*.so", "__pycache__", "*.egg-info")
    for name in ("llpf_fast", "kernels", "csrc"):
        shutil.copytree(ROOT / name, copy / name, ignore=ignore)
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    return copy


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {**{k: v for k, v in os.environ.items() if not k.startswith("LLPF_")}, **environment}
    return subprocess.run([str(part) for part in command], env=environment, capture_output=True, text=True)


def build_wheel(sources: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """What ``pip wheel --no-build-isolation .`` does, without pip's own imports."""
    code = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    environment = {**NO_COMPILER, **environment}
    return run("env", "-C", sources, sys.executable, "-c", code, sources / "dist", **environment)


def wheel_names(sources: Path) -> set[str]:
    (wheel,) = (sources / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(sources / "installed")
        return set(archive.namelist())


def shared_libraries(names: set[str]) -> set[str]:
    return {Path(name).name.partition(".")[0] for name in names if name.endswith(".so")}


def new_environment(path: Path) -> Path:
    """A virtual environment's Python that finds the packages installed here."""
    assert run(sys.executable, "-m", "venv", "--without-pip", path).returncode == 0
    (packages,) = path.glob("lib/python*/site-packages")
    (packages / "ours.pth").write_text(f"{site.getsitepackages()[0]}\n")
    return path / "bin/python"


def test_without_a_compiler_the_package_works_and_says_what_is_missing(sources: Path) -> None:
    built = build_wheel(sources)
    assert built.returncode == 0, built.stderr
    assert "llpf_fast works without llpf_fast._C, but slower; it failed to build" in built.stdout + built.stderr
    names = wheel_names(sources)
    assert shared_libraries(names) == set()
    assert {"llpf_fast/kernels/tick.py", "llpf_fast/ops/tick.py", "llpf_fast/py.typed"} <= names
    code = (
        "from llpf_fast import ops; info = ops.info()\n"
        "import llpf_fast; print(llpf_fast.__file__); print(info['backend']['cpu']); print(info['available']['cpp'])"
    )
    home, used, reason = run(
        "env", "-C", sources.parent, sys.executable, "-c", code, PYTHONPATH=str(sources / "installed")
    ).stdout.splitlines()
    assert home.startswith(str(sources / "installed"))
    assert used == "eager"
    assert reason == "_C.so was not built (install with LLPF_CPP=1 to see why)"


def test_a_required_extension_that_fails_stops_the_build(sources: Path) -> None:
    built = build_wheel(sources, LLPF_CPP="1")
    assert built.returncode != 0
    assert "llpf_fast._C failed to build, and it was required" in built.stderr
    assert not list((sources / "dist").glob("*.whl"))


@pytest.mark.parametrize("switch", [{}, {"LLPF_CPP": "1"}, {"LLPF_CUDA": "1"}], ids=str)
def test_without_torch_the_build_says_so(sources: Path, tmp_path: Path, switch: dict[str, str]) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('No module named torch')\n")
    built = build_wheel(sources, PYTHONPATH=str(tmp_path), **switch)
    assert "no torch in the build environment (No module named torch)" in built.stderr
    if switch:
        assert built.returncode != 0
        assert f"{next(iter(switch))}=1 needs torch in the build environment" in built.stderr
    else:
        assert built.returncode == 0, built.stderr
        assert shared_libraries(wheel_names(sources)) == set()


def test_skipping_the_extensions_leaves_a_pure_wheel(sources: Path) -> None:
    built = build_wheel(sources, LLPF_CPP="0")
    assert built.returncode == 0, built.stderr
    assert "failed" not in built.stdout + built.stderr
    assert shared_libraries(wheel_names(sources)) == set()


def test_a_required_cuda_part_needs_a_toolkit(sources: Path, tmp_path: Path) -> None:
    built = build_wheel(sources, LLPF_CPP="0", LLPF_CUDA="1", CUDA_HOME="/nowhere", PATH=f"{tmp_path}:/usr/bin:/bin")
    assert built.returncode != 0
    assert "LLPF_CUDA=1, but no CUDA toolkit: set CUDA_HOME or put nvcc on PATH" in built.stderr


@pytest.mark.slow
def test_editable_install_builds_again_only_what_changed(sources: Path, tmp_path: Path) -> None:
    python = new_environment(tmp_path / "environment")
    install = (python, "-m", "pip", "install", "--quiet", "--no-build-isolation", "--no-deps", "-e", sources)
    done = run(*install, LLPF_CUDA="0", LLPF_CPP="1")
    assert done.returncode == 0, done.stderr
    objects = {path: path.stat().st_mtime_ns for path in (sources / "build/native").glob("*.o")}
    assert objects
    code = (
        "import llpf_fast.kernels.constants as constants; from llpf_fast import _core, ops; info = ops.info()\n"
        "print(constants.__file__); print(info['available']['cpp']); print(info['core'])"
    )
    where, available, core = run("env", "-C", tmp_path, python, "-c", code).stdout.splitlines()
    assert where == str(sources / "kernels/constants.py")
    assert available == "yes"
    assert core.startswith(str(sources / "llpf_fast/_core."))

    (sources / "csrc/core/cpu/loss_gate.cpp").touch()
    done = run(*install, LLPF_CUDA="0", LLPF_CPP="1")
    assert done.returncode == 0, done.stderr
    rebuilt = [path.name for path, time in objects.items() if path.stat().st_mtime_ns != time]
    assert [name.rpartition("-")[0] for name in rebuilt] == ["loss_gate"]


@pytest.mark.slow
def test_isolated_install_from_the_sources(sources: Path, tmp_path: Path) -> None:
    """What a user types: pip fetches torch into its own build environment."""
    python = new_environment(tmp_path / "environment")
    uv = Path(sys.executable).parent / "uv"
    if not uv.exists():
        pytest.skip("no uv beside this Python; pip alone would fetch gigabytes")
    done = run(uv, "pip", "install", "--python", python, "--no-deps", sources, LLPF_CUDA="0", LLPF_CPP="1")
    if "failed to fetch" in done.stderr.lower() or "dns error" in done.stderr.lower():
        pytest.skip("no package index can be reached")
    assert done.returncode == 0, done.stderr
    code = "from llpf_fast import ops; print(ops.info()['cpp']['loaded'])"
    loaded = run("env", "-C", tmp_path, python, "-c", code).stdout.strip()
    assert loaded.startswith(str(tmp_path / "environment"))
