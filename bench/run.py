"""`make bench` and `make bench-full` start here; `python bench/run.py --help` says what can be asked for.

The bench is a package, so that it can use tests/e2e as one; this file only starts it as such, from the checkout's root.
"""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

if __name__ == "__main__":
    os.chdir(ROOT)
    os.execv(sys.executable, [sys.executable, "-m", "bench.main", *sys.argv[1:]])
