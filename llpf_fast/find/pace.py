"""``Pace``: how long the next step is, decided from how long the corrections take. Never reads a clock."""

from __future__ import annotations

from .settings import PaceSettings


class Pace:
    """Factor on the step's length (ours, beyond the papers). ``scale`` is all there is to remember for a resume.

    A short correction says that the point was still in the low-loss space or close to it: the next step may be longer.
    A failure (threshold not met, or a waypoint that the screening set finds too high) is taken back, and the same way
    is tried again in smaller steps.
    """

    def __init__(self, settings: PaceSettings, min_rounds: int) -> None:
        self._settings = settings
        # A correction never takes fewer rounds than its window holds, so those alone are a short one.
        self._short = max(settings.rounds, min_rounds)
        self.scale = 1.0

    def succeeded(self, rounds: int) -> None:
        """After a correction of ``rounds`` gradient steps whose waypoint passed."""
        if rounds <= self._short:
            self._set(self.scale * self._settings.grow)
        elif rounds > 2 * self._short:
            self._set(self.scale * self._settings.shrink)

    def failed(self) -> bool:
        """After a failure: whether there is a smaller step to try; False means the search is stuck."""
        if self.scale <= self._settings.smallest:
            return False
        self._set(self.scale * self._settings.back)
        return True

    def _set(self, scale: float) -> None:
        self.scale = min(max(scale, self._settings.smallest), self._settings.largest)
