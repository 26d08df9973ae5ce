"""A filesystem for fleets of Chrome profiles. The names here are the Python API, which docs/api.md describes.

They are imported at their first use: whoever imports a part of sessfs, as the daemon does, must not pay for all of it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sessfs.api import (
        CheckReport,
        Entry,
        ErasureReport,
        ExportFormat,
        ExportReport,
        ExportStep,
        ImportProgress,
        ImportReport,
        Session,
        SessionRecord,
        SnapshotRecord,
        Store,
        open_store,
    )
    from sessfs.errors import SessfsError

__all__ = (
    "CheckReport",
    "Entry",
    "ErasureReport",
    "ExportFormat",
    "ExportReport",
    "ExportStep",
    "ImportProgress",
    "ImportReport",
    "SessfsError",
    "Session",
    "SessionRecord",
    "SnapshotRecord",
    "Store",
    "open_store",
)


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "sessfs.errors" if name == "SessfsError" else "sessfs.api"
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
