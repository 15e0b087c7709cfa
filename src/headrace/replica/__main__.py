"""`python -m headrace.replica`: a worker."""

import sys

from headrace.replica.main import main

sys.exit(main())
