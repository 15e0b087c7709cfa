"""The controller's end of the control socket for tests lies beside the tests of the wire."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "wire"))
