"""The one exception a user of the package has to know."""

from __future__ import annotations


class LLPFError(ValueError):
    """Wrong input or an impossible request, said in one line.

    The message names the culprit (a file, a layer, a key, both sizes that differ) and what to do about it. The command
    line prints it without a traceback and exits with status 2; a library user catches it, or catches ValueError.
    """

    def __init__(self, message: object = "") -> None:
        # A path or a user's own text may hold line breaks.
        super().__init__(" ".join(str(message).splitlines()))
