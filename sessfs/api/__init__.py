"""The Python API: `open_store`, and what it gives. `import sessfs` has the same names. docs/api.md describes it."""

from sessfs.api.opening import open_store
from sessfs.api.records import Entry, SessionRecord
from sessfs.api.store import Session, Store
from sessfs.sessions.exporting import ExportFormat, ExportReport, ExportStep

__all__ = (
    "Entry",
    "ExportFormat",
    "ExportReport",
    "ExportStep",
    "Session",
    "SessionRecord",
    "Store",
    "open_store",
)
