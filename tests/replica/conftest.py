"""The controller's end of the control socket lies beside the tests of the wire, clients beside those of the ingress."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "wire"))
sys.path.append(str(Path(__file__).parents[1] / "ingress"))
