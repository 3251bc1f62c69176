"""``python -m SaliencyExplainLib``: the shell."""  # noqa: N999 - Slicer's name for a library folder

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
