"""`python -m zfnet`: the command `zfnet`."""

import sys

from ._command import main

sys.argv[0] = "zfnet"  # as help has it
main()
