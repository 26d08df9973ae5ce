"""The version, for the package and for whoever asks. The packaging reads it from here."""

from __future__ import annotations

VERSION = "0.1.0"
