"""What can go wrong, as types: each message is one line that says what was found, where, and what to do."""

from __future__ import annotations


class RewriterError(Exception):
    """Any failure this project reports on purpose; ``str(error)`` is always a single line."""

    def __init__(self, message: object = "") -> None:
        super().__init__(" ".join(str(message).split()))


class InvalidModel(RewriterError):
    """The model breaks the ONNX standard (or is not an ONNX model at all)."""


class UnsupportedModel(RewriterError):
    """The model is well formed, but this project cannot take it as it stands."""


class InvalidInput(RewriterError):
    """An input, shape, constant or option does not fit the model."""


class VerificationFailed(RewriterError):
    """The rewritten model does not compute what the original computes."""


class BudgetError(RewriterError):
    """The error budget cannot be met, or what it needs (calibration data, a metric) is missing."""
