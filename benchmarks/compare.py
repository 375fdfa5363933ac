"""Two commits timed in one run, call for call in turn: for reviewing a change.

The other commit is checked out in a separate worktree under a temporary folder and built there. Both packages are
timed by *this* checkout's cases, each in its process; the parent alternates between them in the order A B B A.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from llpf_fast.errors import LLPFError

from .cases import chosen
from .harness.case import Case
from .harness.clock import quartiles, ratio
from .harness.environment import ROOT
from .suite import Options

PAIRS, QUICK_PAIRS = 20, 8
_BUILD = ("setup.py", "build_ext", "--inplace")
_KERNELS = ("csrc", "setup.py")


class Worker:
    """One package, timing one case at a time on request."""

    def __init__(self, package: Path) -> None:
        command = [sys.executable, str(Path(__file__).with_name("worker.py")), str(package)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)

    def ask(self, **request: Any) -> dict[str, Any]:
        """Its answer to one request of worker.py.

        Raises:
            LLPFError: it ended, or the case's result is wrong there.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise LLPFError(f"a timing process ended with status {self._process.wait()}; its last words are above")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()


@contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """A built worktree of ``commit``, removed at the end.

    Raises:
        LLPFError: there is no such commit, or it does not build.
    """
    resolved = _git("rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}")
    if resolved.returncode != 0:
        raise LLPFError(f"--compare {commit}: no such commit in {ROOT}")
    with tempfile.TemporaryDirectory(prefix="llpf-bench-") as folder:
        tree = Path(folder) / "tree"
        added = _git("worktree", "add", "--detach", str(tree), resolved.stdout.strip())
        if added.returncode != 0:
            raise LLPFError(f"--compare {commit}: git worktree: {added.stderr.strip()}")
        try:
            _build(tree, commit)
            yield tree
        finally:
            _git("worktree", "remove", "--force", str(tree))


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


def _build(tree: Path, commit: str) -> None:
    """The CPU library: copied where its sources are this checkout's, else compiled."""
    library = ROOT / "llpf_fast" / "_C.so"
    if library.exists() and _git("diff", "--quiet", commit, "--", *_KERNELS).returncode == 0:
        shutil.copyfile(library, tree / "llpf_fast" / "_C.so")
        return
    chosen_parts = {"LLPF_CPP": "1", "LLPF_CUDA": "0"}
    built = subprocess.run(
        [sys.executable, *_BUILD], cwd=tree, env=os.environ | chosen_parts, capture_output=True, text=True, check=False
    )
    if built.returncode != 0:
        raise LLPFError(f"--compare {commit}: it does not build: {(built.stderr or built.stdout).strip()[-300:]}")


def run(options: Options, commit: str, say: Callable[[str], None] = print) -> list[dict[str, Any]]:
    """Time every chosen case in both, say and return time and ratio (other / this: above 1, this checkout is faster).

    Raises:
        LLPFError: see :func:`checked_out`; a case that is wrong in this checkout.
    """
    if options.device != torch.device("cpu"):
        raise LLPFError("--compare times CPU kernels only; leave --device out")
    cases = chosen(options.tier, options.only)
    if not cases:
        raise LLPFError(f"no case is called {options.only!r}; llpf bench --list names them")
    results = []
    with checked_out(commit) as tree:
        workers = {"this": Worker(ROOT), "other": Worker(tree)}
        try:
            for case in cases:
                for threads in [n for n in case.threads if n in ((1,) if options.quick else options.threads)]:
                    for cache in case.caches:
                        pairs = QUICK_PAIRS if options.quick else PAIRS
                        result = _compared(workers, case, threads, cache, pairs)
                        say(_said(result, commit))
                        results.append(result)
        finally:
            for worker in workers.values():
                worker.close()
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        to = options.out / "compare.json"
        to.write_text(json.dumps({"other": commit, "rows": results}, indent=1) + "\n", encoding="utf-8")
        say(f"written: {to}")
    return results


def _compared(workers: dict[str, Worker], case: Case, threads: int, cache: str, pairs: int) -> dict[str, Any]:
    result: dict[str, Any] = {"case": case.name, "threads": threads, "cache": cache}
    for who, worker in workers.items():
        answer = worker.ask(prepare=case.name, threads=threads, cache=cache)
        if "error" in answer:
            if who == "this":
                raise LLPFError(answer["error"])
            return result | {"other": answer["error"]}
    times: dict[str, list[float]] = {"this": [], "other": []}
    for i in range(pairs):
        for who in ("this", "other") if i % 2 == 0 else ("other", "this"):
            times[who].append(workers[who].ask(sample=True)["seconds"])
    for who, samples in times.items():
        result[f"{who}_us"] = quartiles([1e6 * seconds for seconds in samples])
    return result | {"ratio": ratio(times["other"], times["this"])}


def _said(result: dict[str, Any], commit: str) -> str:
    named = f"{result['case']} {result['cache']}, {result['threads']} thread{'s' if result['threads'] > 1 else ''}"
    if "ratio" not in result:
        return f"{named}: not comparable: {result['other']}"
    ratio = result["ratio"]
    verdict = "no difference beyond the spread"
    if ratio["q1"] > 1:
        verdict = "faster now"
    elif ratio["q3"] < 1:
        verdict = "slower now"
    return (
        f"{named}: {result['this_us']['median']:.4g} µs, {commit} {result['other_us']['median']:.4g} µs, ratio "
        f"{ratio['median']:.3f} ({ratio['q1']:.3f}–{ratio['q3']:.3f}): {verdict}"
    )
