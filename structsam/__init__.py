"""StructSAM: token merging for Segment Anything that keeps edges whole, in static shapes.

Importing this package loads neither torch nor segment-anything; the names below load on first use.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME_OF = {
    "apply_merging": "structsam.apply",
    "remove_merging": "structsam.apply",
    "load_sam": "structsam.models.load",
    "MergeConfig": "structsam.config",
    "MergePlan": "structsam.plans.plan",
    "UserError": "structsam.errors",
}

__all__ = ["MergeConfig", "MergePlan", "UserError", "apply_merging", "load_sam", "remove_merging"]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'structsam' has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)
