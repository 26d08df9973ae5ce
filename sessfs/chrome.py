"""What is known of Chrome's profile: the one module with Chrome's file names in it.

Sources: the profile of Chromium 156 on Linux, observed; Simple Cache's file names are those of
net/disk_cache/simple/simple_util.cc (sixteen hexadecimal digits, underscore, stream number or `s` for sparse).
"""

from __future__ import annotations

import re

_SIMPLE_CACHE = re.compile(rb"[0-9a-f]{16}_[0-9s]\Z")


def wants_direct_io(name: bytes) -> bool:
    """True for a newly created Simple Cache file (HTTP cache, CacheStorage).

    Chrome extends and shrinks it with ftruncate around each large pwrite, and with a write-back page cache the kernel
    answers each size change by writing the dirty pages one by one; directly, each pwrite arrives whole. Such a file is
    never mapped while it is being created, and later opens are cached as usual.
    """
    return _SIMPLE_CACHE.match(name) is not None
