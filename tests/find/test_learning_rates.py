"""The learning-rate rule in whole searches."""

from __future__ import annotations

import pytest
import torch

from llpf_fast import LLPFError
from llpf_fast.find import CorrectionSettings
from llpf_fast.path import LowLossPath

from .conftest import quick

BASE = 0.05


@pytest.mark.parametrize("pacing", ["fixed", "adaptive"])
@pytest.mark.parametrize("rule", ["var", "std", "none"])
def test_the_fused_sgd_and_torchs_go_the_same_way(finder, tmp_path, rule, pacing) -> None:
    correction = CorrectionSettings(threshold=0.05, max_steps=20, lr=BASE, lr_rule=rule)
    settings = quick(mode="m2o", max_ticks=6, correction=correction, pacing={"kind": pacing})
    optimizers = {"fused": None, "torch": lambda groups: torch.optim.SGD(groups, lr=BASE)}
    last = {}
    for name, factory in optimizers.items():
        path = LowLossPath(finder(tmp_path / name, settings=settings, optimizer=factory).run().folder)
        last[name] = path[len(path) - 1]
        # What a failure puts back is not what the rule scales.
        assert any(record.get("rolled_back") for record in path.metrics()) == (pacing == "adaptive")
    for name, value in last["fused"].items():
        torch.testing.assert_close(last["torch"][name], value, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize(("rule", "factor"), [("var", 0.95**6), ("std", 0.95**3), (None, 0.95**6), ("none", None)])
def test_the_factor_is_the_variances(finder, standstill, tmp_path, rule, factor) -> None:
    finder(tmp_path / "run", settings=quick(mode="m2o", max_ticks=3, correction=CorrectionSettings(lr_rule=rule))).run()
    if factor is None:
        assert standstill.scales == []
        return
    names = ("0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "3.bias", "5.weight", "5.bias")
    got = dict(zip(names, standstill.scales[2].tolist(), strict=True))
    # Normalization layers train at the full rate.
    assert got == pytest.approx({n: 1.0 if n.startswith("1") else factor for n in names}, rel=1e-4)


def test_weights_only(finder, standstill, tmp_path) -> None:
    correction = CorrectionSettings(lr_rule_layers="weights")
    finder(tmp_path / "run", settings=quick(mode="m2o", max_ticks=1, correction=correction)).run()
    assert standstill.scales[0].tolist() == pytest.approx([0.95**2, 1, 1, 1] + [0.95**2, 1] * 2, rel=1e-4)


@pytest.mark.parametrize("changes", [{"mode": "m2o"}, {"spheres": {"variance": "shrink-first"}}])
def test_a_factory_that_merges_groups_is_refused(finder, tmp_path, changes) -> None:
    def merged(groups):
        return torch.optim.SGD([p for group in groups for p in group["params"]], lr=BASE)

    with pytest.raises(LLPFError, match=r"correction\.lr_rule to none"):
        finder(tmp_path / "run", settings=quick(**changes), optimizer=merged)
    assert not (tmp_path / "run").exists()


def test_an_optimiser_that_takes_one_group_only_is_refused_where_layers_differ(finder, tmp_path) -> None:
    with pytest.raises(LLPFError, match=r"refuses one group a parameter, for correction\.lr_rule .*: LBFGS") as caught:
        finder(tmp_path / "run", settings=quick(mode="m2o"), optimizer=torch.optim.LBFGS)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
