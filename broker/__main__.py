"""`python -m broker` is `stompd`."""

import sys

from .cli import main

sys.exit(main())
