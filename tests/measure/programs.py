"""Small programs that tests start and measure."""

import subprocess
from collections.abc import Callable

WORK = "import time; end = time.process_time() + {}\nwhile time.process_time() < end: pass\nprint('done', flush=True)\n"
ASLEEP = "import sys; sys.stdin.read()"
Start = Callable[[str], subprocess.Popen[bytes]]
