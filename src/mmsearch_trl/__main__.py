"""`python -m mmsearch_trl` is the command `mmsearch`."""

import sys

from mmsearch_trl.commands.main import main


if __name__ == "__main__":
    sys.exit(main())
