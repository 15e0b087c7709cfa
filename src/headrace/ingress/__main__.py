"""`python -m headrace.ingress`: an ingress."""

import sys

from headrace.ingress.main import main

sys.exit(main())
