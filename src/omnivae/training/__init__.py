"""Training: one LightningModule, its callbacks, and ``fit``.

Names are loaded when they are first used: importing Lightning takes seconds, which commands that do not train need not wait.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omnivae.training.combinations import check
    from omnivae.training.config import TrainingConfig
    from omnivae.training.flight import replay
    from omnivae.training.loop import fit
    from omnivae.training.module import VAEModule
    from omnivae.training.result import CHECKPOINTS, FitResult

__all__ = ["CHECKPOINTS", "FitResult", "TrainingConfig", "VAEModule", "check", "fit", "replay"]

_MODULES = {
    "CHECKPOINTS": "result", "FitResult": "result", "TrainingConfig": "config", "VAEModule": "module", "check": "combinations",
    "fit": "loop", "replay": "flight",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value
