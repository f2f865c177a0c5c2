"""wiseft: from a zero-shot CLIP-like model to a robustly fine-tuned one (arXiv 2109.01903).

The names in `__all__` are the public interface, described in docs/python.md; every other module
and name is private and may change. They are imported when they are first used, so that
`import wiseft_cli` loads neither torch nor numpy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wiseft_cli.errors import WiseftError
    from wiseft_cli.evaluation.evaluate import Evaluation, evaluate
    from wiseft_cli.evaluation.predict import predict
    from wiseft_cli.evaluation.request import EvalRequest
    from wiseft_cli.evaluation.soup import Soup, soup
    from wiseft_cli.merging.merge import MergedFile, merge
    from wiseft_cli.model.classifier import ImageClassifier, LoadedCheckpoint, load_checkpoint
    from wiseft_cli.model.zeroshot_checkpoint import ZeroshotCheckpoint, build_zeroshot_checkpoint
    from wiseft_cli.reporting.prediction_text import Prediction, RankedClass

__version__ = "0.1.0"

__all__ = [
    "EvalRequest",
    "Evaluation",
    "ImageClassifier",
    "LoadedCheckpoint",
    "MergedFile",
    "Prediction",
    "RankedClass",
    "Soup",
    "WiseftError",
    "ZeroshotCheckpoint",
    "__version__",
    "build_zeroshot_checkpoint",
    "evaluate",
    "load_checkpoint",
    "merge",
    "predict",
    "soup",
]

_MODULES = {
    "EvalRequest": "evaluation.request",
    "Evaluation": "evaluation.evaluate",
    "ImageClassifier": "model.classifier",
    "LoadedCheckpoint": "model.classifier",
    "MergedFile": "merging.merge",
    "Prediction": "reporting.prediction_text",
    "RankedClass": "reporting.prediction_text",
    "Soup": "evaluation.soup",
    "WiseftError": "errors",
    "ZeroshotCheckpoint": "model.zeroshot_checkpoint",
    "build_zeroshot_checkpoint": "model.zeroshot_checkpoint",
    "evaluate": "evaluation.evaluate",
    "load_checkpoint": "model.classifier",
    "merge": "merging.merge",
    "predict": "evaluation.predict",
    "soup": "evaluation.soup",
}
"""The module of each public name."""


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # lazy: `import wiseft_cli` itself imports nothing
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
