"""The README's table of what is supported, from the code itself.

python docs/supported.py          # prints the block
python docs/supported.py --write  # puts it into README.md
"""

from __future__ import annotations

import sys
import typing
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # this checkout's package, whichever is installed

from llpf_fast.batches.augment import augmentation
from llpf_fast.data import dataset_names
from llpf_fast.find import (
    CorrectionSettings,
    LayerSettings,
    PacingSettings,
    ScheduleSettings,
    Settings,
    SphereSettings,
)
from llpf_fast.find.pairing import PAIRINGS
from llpf_fast.models import model_names
from llpf_fast.modes import MODES
from llpf_fast.recipes import recipe_names
from llpf_fast.tick import Rule

README = Path(__file__).parents[1] / "README.md"
BEGIN = "<!-- supported:begin: written by docs/supported.py, held against the code by a test -->"
END = "<!-- supported:end -->"

#: The setting that each switch of a rule comes from, and its value under a rule.
_SWITCHES = {
    "step.combine": lambda rule: "sum" if rule.combine_sum else "max",
    "step.clamp": lambda rule: _yaml(rule.clamp),
    "step.epsilon": lambda rule: f"{rule.epsilon:g}",
    "layers.rescale_normalization": lambda rule: _yaml(rule.rescale_normalization),
    "layers.rescale_skipped": lambda rule: _yaml(rule.rescale_skipped),
    "correction.lr_rule_layers": lambda rule: "weights" if rule.lr_weights_only else "all",
}


def choices(kind: type, name: str) -> list[str]:
    """What a setting may be, from its annotation."""
    hint = typing.get_type_hints(kind)[name]
    out: list[str] = []
    for part in typing.get_args(hint) or (hint,):
        out += [str(c) for c in typing.get_args(part)] if typing.get_args(part) else [str(part)]
    return [c for c in out if "NoneType" not in c]


def block() -> str:
    """The block between the two markers, without them."""
    lines = ["| `mode` | goes | ends | norm layers: paper / authors | learning rate |", "|---|---|---|---|---|"]
    for mode, row in MODES.items():
        rules = [Rule.from_settings(Settings(mode=mode, dialect=d)) for d in ("paper", "authors")]
        settings = Settings(mode=mode)
        end = "at that model, bit for bit" if settings.goal == "model" else "on the spheres"
        if settings.goal == "none":
            end = "after `max_ticks`, or stuck"
        norms = " / ".join(_norms(rule) for rule in rules)
        lr = {"none": "constant", "var": "times the variance ratio", "std": "times its root"}[rules[0].lr_rule]
        lines.append(f"| `{mode}` | {row.text} | {end} | {norms} | {lr} |")
    paper, authors = (Rule.from_settings(Settings(dialect=d)) for d in ("paper", "authors"))
    differ = ", ".join(f"`{key}` {value(paper)} / {value(authors)}" for key, value in _SWITCHES.items())
    lines += [
        "",
        "| setting | choices |",
        "|---|---|",
        f"| `dialect` | {_list(choices(Settings, 'dialect'))}; they differ in {differ}; each can be set alone |",
        f"| `layers.normalization` | {_list(choices(LayerSettings, 'normalization'))}; by module type (torch, timm, "
        f"your own through `is_norm`); by name: `layers.keep`, `compensate`, `compensate_twice` |",
        f"| `layers.attention` | {_list(choices(LayerSettings, 'attention'))}; fused qkv cut by rows, or separate |",
        f"| `spheres.variance` (m2m) | {_list(choices(SphereSettings, 'variance'))} |",
        f"| `schedule.kind` | {_list(choices(ScheduleSettings, 'kind'))}; stages by tick or arrival, layers by glob or "
        "`re:` |",
        f"| `correction.lr_rule` | {_list(choices(CorrectionSettings, 'lr_rule'))} |",
        f"| `pacing.kind` | {_list(choices(PacingSettings, 'kind'))} |",
        f"| `augmentation` | {_list(choices(Settings, 'augmentation'))} |",
        f"| `--pairing` of folders | {_list(PAIRINGS)} |",
        f"| models | {_list(model_names())}, or `file.py:factory` |",
        f"| data | {_list(dataset_names())}, or `file.py:function` |",
        f"| recipes | {_list(_with_twins())}, each with a `-quick` twin |",
    ]
    for name in choices(Settings, "augmentation"):
        augmentation(name)
    return "\n".join(lines)


def _with_twins() -> list[str]:
    quick = "-quick"
    names = recipe_names()
    long = [name for name in names if not name.endswith(quick)]
    alone = [name for name in long if name + quick not in names]
    if alone:
        raise SystemExit(f"recipes without a quick twin: {', '.join(alone)}")
    return long


def _yaml(value: bool) -> str:
    return "true" if value else "false"


def _norms(rule: Rule) -> str:
    if rule.normalization is rule.layer_norm:
        return rule.normalization.value
    return f"{rule.normalization.value}, LayerNorm {rule.layer_norm.value}s"


def _list(values: typing.Iterable[str]) -> str:
    return ", ".join(f"`{v}`" for v in values)


def in_readme() -> str:
    """What README.md holds now."""
    text = README.read_text(encoding="utf-8")
    return text.partition(BEGIN)[2].partition(END)[0].strip()


if __name__ == "__main__":
    if "--write" in sys.argv:
        text = README.read_text(encoding="utf-8")
        head, _, rest = text.partition(BEGIN)
        README.write_text(f"{head}{BEGIN}\n{block()}\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    else:
        print(block())
