"""The plane through a face's centroid that is orthogonal to the face."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import LLPFError

#: Of the longest difference: below it two optima count as one point.
_SAME = 1e-6


class Hyperplane:
    """All points x with (x - c) orthogonal to every difference of ``corners``, c their centroid.

    A point that joins optima is searched here and nowhere else, so that it can slide neither back to one of them nor
    along the line between two (1906.04724's connectors, as users of the paper describe it, for two optima; several: our
    extension). Of k corners in general position the plane has N - k + 1 dimensions.

    Args:
        corners: ``[k, N]``, k >= 2.

    Raises:
        LLPFError: two corners are the same point; not finite.
    """

    def __init__(self, corners: Tensor) -> None:
        wide = corners.to(torch.float64)
        if not bool(wide.isfinite().all()):
            raise LLPFError("an optimum has NaN or infinite parameters; train it again")
        differences = wide[1:] - wide[0]
        longest = float(differences.norm(dim=1).max())
        if longest == 0 or float(torch.pdist(wide).min()) <= _SAME * longest:
            raise LLPFError("two of the models are the same point: there is nothing to connect; name different ones")
        # Of corners that depend on each other (three on a line) only as many directions are left as they span.
        _, sizes, directions = torch.linalg.svd(differences, full_matrices=False)
        kept = directions[sizes > _SAME * float(sizes.max())]
        #: The centroid ``[N]``, and an orthonormal basis of the face ``[dimension, N]``; dtype of the corners.
        self.centroid = wide.mean(0).to(corners.dtype)
        self.basis = kept.to(corners.dtype)

    def project_gradient_(self, gradient: Tensor) -> Tensor:
        """Take the part along the face out of ``gradient`` ``[N]``, in place."""
        return gradient.sub_((self.basis @ gradient) @ self.basis)

    def project_point_(self, point: Tensor) -> Tensor:
        """Put ``point`` ``[N]`` back on the plane, in place: whatever optimiser moved it."""
        return point.sub_((self.basis @ (point - self.centroid)) @ self.basis)

    def distance(self, point: Tensor) -> float:
        """How far ``point`` is off the plane."""
        return float((self.basis.double() @ (point.double() - self.centroid.double())).norm())
