"""Every Triton kernel compiled for sm_90 without a GPU, and what the compiler made of it.

Checked on the PTX and on the resources that ``cuobjdump`` (from triton's wheel) reads from the cubin: no spills, no
local memory, few enough registers, 16-byte loads and stores, no float64 where float32 is promised, no approximations.
Interpreted kernels cannot be compiled, so under ``TRITON_INTERPRET=1`` the tests run in a separate process.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

triton = pytest.importorskip("triton")

if os.environ.get("TRITON_INTERPRET") == "1":

    def test_kernels_compile_where_they_are_not_interpreted() -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_") and k != "TRITON_INTERPRET"}
        run = subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "no:xdist", "-p", "no:cacheprovider", __file__],
            cwd=Path(__file__).parents[2],
            env=environment,
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
        assert " passed" in run.stdout

else:
    import torch
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.runtime import driver

    from llpf_fast.errors import LLPFError
    from llpf_fast.flat import SegmentTable
    from llpf_fast.kernels import (
        KERNELS,
        affine,
        coefficients,
        counter_randint,
        loss_gate,
        moments,
        relu_pool_bounds,
        sgd,
    )
    from llpf_fast.kernels.launch import BLOCK, RAGGED, WARPS, check_grid
    from llpf_fast.ops import Destination

    CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    BITS = {"*fp32": 32, "*fp64": 64, "*bf16": 16, "*fp16": 16}

    # Registers that let the programs share a multiprocessor as kernels/launch.py counts on: 65,536 over 128 threads
    # leave room for eight programs, four, three and two.
    ELEMENTWISE, ELEMENTWISE_DOUBLE, REDUCING, REDUCING_DOUBLE = 64, 128, 168, 232

    @dataclass
    class Variant:
        """One kernel with the types and constants of a launch. ``moved`` counts the 16-byte accesses of a thread."""

        name: str
        kernel: Any
        types: dict[str, str]
        constants: dict[str, Any]
        registers: int
        warps: int = WARPS
        loads: int | None = None
        stores: int | None = None
        float32_only: bool = False

    COMMON = {
        "segments": "*i64",
        "chunks": "*i64",
        "active": "*fp64",
        "maps": "*fp64",
        "partial": "*fp64",
        "lr": "*fp64",
        "length": "i64",
        "d_stride": "i64",
        "lr_row": "i32",
        "lr_column": "i32",
        "segment_count": "i32",
        "chunk_count": "i32",
        "momentum": "fp64",
        "weight_decay": "fp64",
    }

    def walk(p: str) -> dict[str, Any]:
        compute = tl.float64 if p == "*fp64" else tl.float32
        return {"ALIGNED": True, "VECTOR": 128 // BITS[p], "COMPUTE": compute, "BLOCK": BLOCK, "RAGGED": RAGGED}

    def reducing(p: str) -> int:
        return REDUCING_DOUBLE if p == "*fp64" else REDUCING

    def elementwise(p: str) -> int:
        return ELEMENTWISE_DOUBLE if p == "*fp64" else ELEMENTWISE

    def pieces(*streams: str | None) -> int:
        """16-byte accesses of one thread for a whole tile of each stream."""
        return sum(BLOCK // (32 * WARPS) * BITS[s] // 128 for s in streams if s is not None)

    def missing(**values: str | None) -> dict[str, None]:
        return {name: None for name, value in values.items() if value is None}

    def variants() -> list[Variant]:
        out = []
        for p, d in (("*fp32", "*fp32"), ("*fp32", "*bf16"), ("*fp32", None), ("*bf16", "*bf16"), ("*fp64", "*fp64")):
            types = COMMON | {"p": p, "d": d or "", "waypoint": p}
            # A narrow d beside a float32 p is read in 8-byte pieces: see kernels/launch.py.
            wide = d if d == p else None
            constants = walk(p) | missing(d=d)
            out.append(
                Variant(f"moments {p} {d}", moments.chunk_kernel, types, constants, reducing(p), loads=pieces(p, wide))
            )
            for waypoint in (None, p):
                extra = {"ACTIVE": 0, "active": None, "waypoint": None} if waypoint is None else {"ACTIVE": 1}
                out.append(
                    Variant(
                        f"affine {p} {d} waypoint {waypoint}",
                        affine.map_kernel,
                        types,
                        constants | extra,
                        elementwise(p),
                        loads=pieces(p, wide),
                        stores=pieces(p, waypoint),
                        float32_only=p != "*fp64",
                    )
                )
        for p in ("*fp32", "*bf16", "*fp64"):
            for buffer in (None, p):
                switches = {"DECAY": True, "NESTEROV": buffer is not None, "ACTIVE": 5}
                out.append(
                    Variant(
                        f"sgd {p} buffer {buffer}",
                        sgd.sgd_kernel,
                        COMMON | {"p": p, "g": p, "buffer": p},
                        walk(p) | switches | missing(buffer=buffer),
                        elementwise(p),
                        loads=pieces(p, p, buffer),
                        stores=pieces(p, buffer),
                        float32_only=p != "*fp64",
                    )
                )
        types = COMMON | {"out": "*fp64"}
        out.append(Variant("combine", moments.combine_kernel, types, {"LANES": moments._LANES}, 96, warps=8))
        types = COMMON | dict.fromkeys(["moments", "target_variance", "step", "radius", "work", "out"], "*fp64")
        types |= {"count": "i32", "target_stride": "i32", "step_stride": "i32", "epsilon": "fp64"}
        # The other destinations compile to parts of these, at three seconds each.
        for destination in (Destination.POINT, Destination.VARIANCE_SPHERE, Destination.NORM_SPHERE):
            sphere = destination in (Destination.VARIANCE_SPHERE, Destination.NORM_SPHERE)
            constants = {
                "ACTIVE": 1,
                "DESTINATION": int(destination),
                "SUM": destination % 2 == 0,
                "CLAMP": True,
                "PROJECT": True,
                "LANES": coefficients._LANES,
                "WIDTH": coefficients._WIDTH,
            } | missing(radius="*fp64" if sphere else None)
            out.append(
                Variant(f"coefficients {destination.name}", coefficients.coefficient_kernel, types, constants, 224)
            )
        types = {"state": "*fp64", "loss": "*fp32", "threshold": "fp64", "max_steps": "i32"}
        out.append(Variant("loss_gate", loss_gate.loss_gate_kernel, types, {"LOSSES": 5, "WIDTH": 9}, 64, warps=1))
        types = {"out": "*i64", "key": "*i64", "first": "*i64", "state": "*fp64"}
        types |= dict.fromkeys(("row_columns", "rows", "columns"), "i32")
        types |= {f"bound{i}": "i64" for i in range(4)}
        out.append(Variant("counter_randint", counter_randint.counter_randint_kernel, types, {"LANES": 256}, 32))
        for p in ("*fp32", "*fp64"):
            names = relu_pool_bounds.relu_pool_bounds_kernel.arg_names
            types = dict.fromkeys([name for name in names if name.islower()], "i32")
            types |= dict.fromkeys(("left", "right", "radius", "out_left", "out_right", "out_radius"), p)
            types |= {"count": "i64", "radii": "i64", "slope": "fp64", "half_bend": "fp64"}
            info = torch.finfo(torch.float32 if p == "*fp32" else torch.float64)
            constants = {"UNIT": info.eps / 2, "TINY": info.tiny, "MOST": info.max, "LANES": relu_pool_bounds.LANES}
            constants["TYPE"] = tl.float32 if p == "*fp32" else tl.float64
            for pooled in (False, True):
                out.append(
                    Variant(
                        f"relu_pool_bounds {p} pooled {pooled}",
                        relu_pool_bounds.relu_pool_bounds_kernel,
                        types,
                        constants | {"POOLED": pooled},
                        elementwise(p),
                    )
                )
        return out

    def compile_for_hopper(variant: Variant, aligned: bool = True) -> Any:
        names = variant.kernel.arg_names
        signature = {name: "constexpr" if name in variant.constants else variant.types[name] for name in names}
        attributes = {
            (i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if aligned and signature[name][0] == "*"
        }
        source = ASTSource(fn=variant.kernel, signature=signature, constexprs=variant.constants, attrs=attributes)
        options = {"num_warps": variant.warps, "enable_fp_fusion": False}
        return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)

    def resources(cubin: bytes, folder: Path) -> dict[str, int]:
        file = folder / "kernel.cubin"
        file.write_bytes(cubin)
        text = subprocess.run([CUOBJDUMP, "-res-usage", file], capture_output=True, text=True, check=True).stdout
        resources = {key: int(value) for key, value in re.findall(r"\b(REG|STACK|LOCAL|SHARED):(\d+)", text)}
        assert resources.keys() == {"REG", "STACK", "LOCAL", "SHARED"}, text
        return resources

    def wide_accesses(ptx: str, kind: str) -> int:
        """Loads (``ld``) or stores (``st``) of 16 bytes in global memory."""
        widths = re.findall(rf"\b{kind}\.global(?:\.\w+(?:::\w+)?)*?\.v(\d)\.[bfsu](\d+)", ptx)
        return sum(int(count) * int(width) == 128 for count, width in widths)

    @pytest.mark.parametrize("variant", variants(), ids=lambda variant: variant.name)
    def test_compiles_for_hopper(variant: Variant, tmp_path: Path) -> None:
        kernel = compile_for_hopper(variant)
        ptx = kernel.asm["ptx"]
        assert not re.findall(r"\S*\.(?:approx|ftz)\S*", ptx)
        if variant.loads is not None:
            assert wide_accesses(ptx, "ld") == variant.loads
        if variant.stores is not None:
            assert wide_accesses(ptx, "st") == variant.stores
            # Each element stays with one thread, which reads it before it writes it: d may be p itself.
            assert "convert_layout" not in kernel.asm["ttgir"]
        if variant.float32_only:
            # Coefficients are compared with the identity and converted in float64. Nothing is computed in it but maps
            # that float32 cannot hold, in a separate loop: three products an element of its narrow tile, no more.
            computed = {name for name in re.findall(r"\b[a-z]+(?:\.\w+)*\.f64\b", ptx) if not name.startswith("setp.")}
            assert computed <= {"cvt.rn.f32.f64", "abs.f64", "cvt.f64", "fma.rn.f64"}
            narrow = max(1, variant.constants["RAGGED"] // (32 * variant.warps))
            assert ptx.count("fma.rn.f64") <= 3 * narrow
            assert ptx.count("fma.rn.f32") + ptx.count("fma.rn.f32x2") > 3 * narrow
        if not CUOBJDUMP.exists():
            pytest.skip(f"the resource report needs {CUOBJDUMP}")
        used = resources(kernel.asm["cubin"], tmp_path)
        assert used["STACK"] == 0
        assert used["LOCAL"] == 0
        assert used["REG"] <= variant.registers

    def test_unaligned_buffers_are_never_read_in_wide_pieces() -> None:
        variant = next(v for v in variants() if v.name == "moments *fp32 *fp32")
        assert wide_accesses(compile_for_hopper(variant, aligned=False).asm["ptx"], "ld") == 0
        variant.constants["ALIGNED"] = False
        assert wide_accesses(compile_for_hopper(variant).asm["ptx"], "ld") == 0

    class Hopper:
        """As much of a driver as compiling for a launch asks for."""

        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", 90, 32)

        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: int) -> int:
            return 0

    @pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here and launches for real in tests/gpu")
    def test_launchers_bind_their_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
        """What a launch does before the GPU: bind arguments to types and constants, compile. Counts the launches."""
        launched: list[tuple[str, dict[str, str], str]] = []

        def warm_up(
            kernel: Any, grid: tuple[int, ...], like: torch.Tensor, *arguments: Any, warps: int, **rest: Any
        ) -> None:
            built = kernel.warmup(*arguments, grid=grid, num_warps=warps, enable_fp_fusion=False, **rest)
            assert not built.metadata.enable_fp_fusion
            assert built.metadata.num_warps == warps
            launched.append((kernel.fn.__name__, built.src.signature, built.asm["ptx"]))

        def names() -> list[str]:
            taken = [name for name, _, _ in launched]
            launched.clear()
            return taken

        for module in (moments, affine, coefficients, sgd, loss_gate, counter_randint):
            monkeypatch.setattr(module, "launch", warm_up)
        table = SegmentTable.from_lengths([5000, 16])
        p, d = torch.zeros(table.numel), torch.zeros(table.numel)
        two, active = torch.ones(2, dtype=torch.float64), torch.ones(6, dtype=torch.float64)
        known, scratch = torch.zeros(2, 5, dtype=torch.float64), table.scratch()
        rule = {"destination": 0, "epsilon": 1e-4, "combine_sum": True, "clamp": True, "project_first": True}
        update = {"momentum": 0.0, "weight_decay": 0.0, "nesterov": False}
        segments, chunks = table.segments, table.chunks
        # Not set_active: its undoing needs a real driver.
        monkeypatch.setattr(driver, "_active", Hopper())
        KERNELS["tick_"](p, d, segments, chunks, two, two, None, None, None, None, scratch, **rule)
        wide = {name: wide_accesses(ptx, "ld") for name, _, ptx in launched}
        assert wide["chunk_kernel"] == wide["map_kernel"] == pieces("*fp32", "*fp32")
        types = {name: signature for name, signature, _ in launched}
        assert types["coefficient_kernel"]["epsilon"] == "fp64"
        assert names() == ["chunk_kernel", "combine_kernel", "coefficient_kernel", "map_kernel"]
        KERNELS["tick_"](p, d, segments, chunks, two, two, None, None, known, None, scratch, **rule)
        assert names() == ["coefficient_kernel", "map_kernel"]
        KERNELS["sgd_"](p, d, None, two[0], segments, chunks, active, **update)
        assert launched[0][1]["momentum"] == "fp64"
        assert names() == ["sgd_kernel"]
        KERNELS["loss_gate_"](active, torch.tensor(1.0), threshold=0.1, window=2, max_steps=4)
        assert launched[0][1]["threshold"] == "fp64"

    def test_cpu_tensors_are_refused_by_name() -> None:
        table = SegmentTable.from_lengths([16])
        p = torch.zeros(table.numel)
        with pytest.raises(LLPFError, match="Triton runs on CUDA tensors, got cpu"):
            KERNELS["moments"](p, p, table.segments, table.chunks, table.scratch())

    def test_a_grid_that_no_gpu_launches_is_refused_by_name() -> None:
        table = SegmentTable.from_lengths([16])
        p, maps = torch.zeros(65_536, 16), torch.zeros(65_536, 1, 5, dtype=torch.float64)
        with pytest.raises(LLPFError, match=r"map_kernel needs 65,536 blocks along axis y .* launches 65,535"):
            KERNELS["affine_"](p, None, maps, table.segments, table.chunks)
        with pytest.raises(LLPFError, match="Triton runs on CUDA tensors"):  # past the grid: paths lie along x
            KERNELS["loss_gate_"](
                torch.ones(65_536, 5, dtype=torch.float64),
                torch.ones(65_536),
                threshold=0.1,
                window=1,
                max_steps=2,
            )
        with pytest.raises(LLPFError, match="counter_randint_kernel needs 2,147,483,648 blocks along axis x"):
            check_grid(counter_randint.counter_randint_kernel, (2**31, 1))

    def test_without_triton_the_import_says_so() -> None:
        code = "import sys; sys.modules['triton'] = None; import llpf_fast, llpf_fast.ops; import llpf_fast.kernels"
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert run.returncode != 0
        assert "ImportError: llpf_fast.kernels needs triton, which is not installed: pip install triton" in run.stderr
