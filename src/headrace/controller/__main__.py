"""`python -m headrace.controller`: the controller's process, started by the keeper."""

import sys

from headrace.controller.main import main

sys.exit(main())
