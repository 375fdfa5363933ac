"""``tick_`` in Triton: moments, coefficients and the elementwise pass behind one call."""

from __future__ import annotations

import torch
from torch import Tensor

from llpf_fast.ops.library import (
    COEFFICIENT_COLUMNS,
    MOMENT_COLUMNS,
    rows,
)
from llpf_fast.ops.tick import check_tick, inspect_tick

from .affine import launch_maps
from .coefficients import launch_coefficients
from .moments import launch_moments


def tick_triton(
    p: Tensor,
    d: Tensor | None,
    segments: Tensor,
    chunks: Tensor,
    target_variance: Tensor,
    step: Tensor,
    active: Tensor | None,
    radius: Tensor | None,
    moments_in: Tensor | None,
    waypoint: Tensor | None,
    scratch: Tensor,
    *,
    destination: int,
    epsilon: float,
    combine_sum: bool,
    clamp: bool,
    project_first: bool,
) -> None:
    """The op :func:`llpf_fast.ops.tick_`, same arguments and errors.

    Two launches with ``moments_in``, four without. Programs may not wait for each other, so what
    needs a whole segment (combining chunks) and what needs a whole group (coefficients) are separate launches.
    Combining inside the coefficient kernel would save one launch, 2 us in a CUDA graph, but lets one program combine
    all members of a group one after another: 2 us each, 100 us where a whole network shares one distance.
    """
    tensors = (p, d, segments, chunks, target_variance, step, active, radius, moments_in, waypoint, scratch)
    check_tick(*tensors, destination, epsilon)
    inspect_tick(*tensors, destination)
    paths, count, pieces = rows(p), segments.shape[0], chunks.shape[0]
    scratch = scratch.view(-1)
    partial, rest = scratch[: 5 * paths * pieces], scratch[5 * paths * pieces :]
    moments, maps = rest[: MOMENT_COLUMNS * paths * count], rest[MOMENT_COLUMNS * paths * count :]
    maps = maps[: COEFFICIENT_COLUMNS * paths * count]
    if moments_in is not None:
        measured, work = moments_in, moments
    else:
        launch_moments(p, d, segments, chunks, partial, moments)
        # The partial sums are used up. Only a table with segments of no elements has too few of them.
        measured = moments
        work = partial if pieces >= count else torch.empty_like(maps)
    launch_coefficients(
        measured, segments, target_variance, step, active, radius, work, maps,
        destination=destination, epsilon=epsilon, combine_sum=combine_sum, clamp=clamp, project_first=project_first,
    )  # fmt: skip
    launch_maps(p, d, maps, segments, chunks, waypoint, active)
