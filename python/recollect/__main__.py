# SPDX-License-Identifier: BSD-3-Clause
"""``python -m recollect``."""

import signal
import sys

from ._cli import main

if __name__ == "__main__":
    # A polite kill unwinds like Ctrl-C does, so that no temporary file is left behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
