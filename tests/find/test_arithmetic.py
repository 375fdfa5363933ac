"""How the correction computes: precision, memory format, compilation; the search and its float32 certificate stay."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llpf_fast import LLPFError
from llpf_fast.batches import TensorBatches
from llpf_fast.batches.precision import as_channels_last, float32_products
from llpf_fast.correct import Correction
from llpf_fast.find import CorrectionSettings, PathFinder, Settings, StepSettings
from llpf_fast.find.resume import check_same_search
from llpf_fast.find.task import channels_last
from llpf_fast.flat import FlatParameters
from llpf_fast.path import RunDirectory

from .conftest import State, network, quick

CPU = torch.device("cpu")


def convolutional() -> nn.Module:
    torch.manual_seed(0)
    pool = nn.Sequential(nn.ReLU(), nn.MaxPool2d(4), nn.Flatten())
    return nn.Sequential(nn.Conv2d(1, 8, 5), nn.Conv2d(8, 6, 5), pool, nn.Linear(150, 4))


def images() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(64, 1, 28, 28), torch.randint(4, (64,))


def trained(**changes: Any) -> tuple[FlatParameters, list[bool]]:
    """Eight iterations; whether each convolution's output had its channels last."""
    last = changes.pop("channels_last", False)
    flat, channels_last = FlatParameters(convolutional()), list[bool]()
    for module in flat.module:  # type: ignore[union-attr]
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(
                lambda _m, _i, out: channels_last.append(out.is_contiguous(memory_format=torch.channels_last))
            )
    batches = TensorBatches(*images(), 16, seed=2, channels_last=last)
    rule = {"threshold": 0.0, "window": 8, "max_steps": 8}
    Correction(flat, nn.functional.cross_entropy, batches, **rule, lr=0.05, **changes).run(0)  # type: ignore[arg-type]
    return flat, channels_last


def test_channels_last_reaches_the_activations_and_nothing_else() -> None:
    float32, channels_last = trained()
    assert not any(channels_last)
    other, channels_last = trained(channels_last=True)
    assert len(channels_last) == 16
    assert all(channels_last)
    assert all(parameter.is_contiguous() for parameter in other.module.parameters())
    torch.testing.assert_close(other.data, float32.data, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_as_channels_last_keeps_values_and_copies_one_channel_never(channels: int) -> None:
    x = torch.randn(2, channels, 5, 7)
    got = as_channels_last(x)
    assert torch.equal(got, x)
    assert got.stride() == (channels * 35, 1, 7 * channels, channels)
    assert (got.data_ptr() == x.data_ptr()) is (channels == 1)
    for other in (torch.randn(2, 3), torch.zeros(2, 3, 4, 4, dtype=torch.int64), [1]):
        assert as_channels_last(other) is other


def test_null_means_channels_last_on_a_cpu() -> None:
    for chosen, on_cpu, on_gpu in ((None, True, False), (True, True, True), (False, False, False)):
        settings = Settings(correction=CorrectionSettings(channels_last=chosen))
        assert channels_last(settings, CPU) is on_cpu
        assert channels_last(settings, torch.device("cuda")) is on_gpu


def test_bfloat16_is_coarser_and_leaves_the_parameters_float32() -> None:
    float32, _ = trained()
    narrow, _ = trained(precision="bfloat16")
    assert narrow.data.dtype == narrow.grad.dtype == torch.float32
    off = float((narrow.data - float32.data).norm() / float32.data.norm())
    # Eight steps, each with products of factors rounded to 8 bits.
    assert 1e-6 < off < 8 * 2**-8
    # Values that no bfloat16 holds: the update itself was float32.
    assert not torch.equal(narrow.data.bfloat16().float(), narrow.data)


def test_tf32_belongs_to_gpus() -> None:
    with pytest.raises(LLPFError, match=r"correction.precision tf32 belongs to NVIDIA GPUs, not to cpu: use float32"):
        trained(precision="tf32")


def test_products_on_a_gpu_are_set_and_restored() -> None:
    switches = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)  # type: ignore[attr-defined]
    before = [switch.fp32_precision for switch in switches]
    for precision, expected in (("float32", "ieee"), ("bfloat16", "ieee"), ("tf32", "tf32")):
        with contextlib.suppress(ZeroDivisionError), float32_products(precision, torch.device("cuda")):  # type: ignore[arg-type]
            assert [switch.fp32_precision for switch in switches] == [expected] * 2
            raise ZeroDivisionError
        assert [switch.fp32_precision for switch in switches] == before


def test_compile_is_used_and_its_failure_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
        asked.append(function)
        return function

    monkeypatch.setattr(torch, "compile", compiled)
    float32, _ = trained()
    assert not asked
    same, _ = trained(compile=True)
    assert len(asked) == 1
    assert torch.equal(float32.data, same.data)

    def broken(_: Callable[..., Any]) -> Callable[..., Any]:
        def fail(*_: Any) -> Any:
            raise RuntimeError("no compiler\nmany lines")

        return fail

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(LLPFError, match=r"^the compiled model or loss fails: no compiler; set correction.compile"):
        trained(compile=True)


@pytest.mark.slow
def test_compiled_passes_train_alike() -> None:
    float32, _ = trained()
    compiled, _ = trained(compile=True)
    torch.testing.assert_close(compiled.data, float32.data, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"precision": "float16"}, "correction.precision must be one of float32, tf32, bfloat16; got 'float16'"),
        ({"cuda_graph": True}, "correction.cuda_graph must be one of auto, on, off, while; got True"),
        ({"channels_last": "yes"}, "correction.channels_last must be true or false, got 'yes'"),
        ({"compile": None}, "correction.compile must be true or false, got None"),
    ],
)
def test_wrong_values_are_named(change: dict[str, Any], says: str) -> None:
    with pytest.raises(LLPFError) as error:
        Settings(correction=change)
    assert says in str(error.value)


def test_a_resumed_run_may_change_its_arithmetic_and_is_told_so() -> None:
    now = Settings().as_dict()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_same_search(now, now, "run")
        check_same_search(now, Settings(correction=CorrectionSettings(cuda_graph="off")).as_dict(), "run")
    other = Settings(correction=CorrectionSettings(precision="bfloat16")).as_dict()
    with pytest.warns(UserWarning, match=r"not be bit-identical.*correction.precision was float32, is bfloat16"):
        check_same_search(now, other, "run")
    for different in (Settings(seed=1), Settings(correction=CorrectionSettings(lr=0.5))):
        with pytest.raises(LLPFError, match=r"cannot resume run: its settings differ"):
            check_same_search(now, different.as_dict(), "run")


_NEW = ("cuda_graph", "precision", "channels_last", "compile")

HASTY: dict[str, Any] = {
    "pacing": {"kind": "adaptive", "margin": 0.2},
    "max_ticks": 12,
    "record": {"checkpoint_every": 5},
    "arrival": {"every": 100},
    "step": StepSettings(relative=0.25),
    "correction": CorrectionSettings(threshold=0.05, window=5, max_steps=12, lr=0.1, momentum=0.5, keep_momentum=True),
}


@pytest.mark.parametrize("changes", [HASTY, {"max_ticks": 12, "mode": "m2o"}], ids=["adaptive", "m2o"])
def test_a_search_whose_iterations_are_replayed_is_the_same_bit_for_bit(
    tmp_path: Path, digits: tuple[Tensor, Tensor], endpoints: tuple[State, State], changes: dict[str, Any]
) -> None:
    """Rollback, checkpoints and learning rates that follow the layers included."""
    given = endpoints[:1] if "mode" in changes else endpoints
    settings, digests = quick(**changes), []
    for name in ("ordinary", "replayed"):
        finder = PathFinder(network(), *given, settings=settings, train=digits, out=tmp_path / name)
        if name == "replayed":
            finder._correction.replay(lambda step: step)
        finder.run()
        assert finder._correction.captured is (name == "replayed")
        digests.append(
            (RunDirectory.open(tmp_path / name).index_digest(), (tmp_path / name / "metrics.jsonl").read_text())
        )
    assert digests[0] == digests[1]
    assert ("rolled_back" in digests[0][1]) is ("mode" not in changes)


def test_the_settings_are_recorded_and_screening_stays_float32(
    tmp_path: Path, digits: tuple[Tensor, Tensor], endpoints: tuple[State, State]
) -> None:
    precise = []

    class Notes(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = super().forward(x)
            precise.append((self.training, out.dtype))
            return out

    settings = quick(
        max_ticks=2, pacing={"kind": "adaptive"}, correction=CorrectionSettings(precision="bfloat16", lr=0.05)
    )
    finder = PathFinder(Notes(*network()), *endpoints, settings=settings, train=digits, out=tmp_path / "run")
    precise.clear()  # how the network must be run was tried before, in float32
    finder.run()
    assert set(precise) == {(True, torch.bfloat16), (False, torch.float32)}
    recorded = RunDirectory.open(tmp_path / "run").run["settings"]["correction"]
    assert {key: recorded[key] for key in _NEW} == {
        "cuda_graph": "auto",
        "precision": "bfloat16",
        "channels_last": None,
        "compile": False,
    }
