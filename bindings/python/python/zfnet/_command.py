"""The command `zfnet`."""

import signal
import sys

from . import _zfnet


def main() -> None:
    """Runs the command with the arguments of this process."""
    # The command itself decides what Ctrl-C does; Python's own handler would wait for Python to run again.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(_zfnet.main(sys.argv))
