"""The harness's own host.py, in which this package is registered as a system. Started by the harness."""

import runpy
import sys

from run import enter

enter()
runpy.run_path(f"{sys.path[0]}/host.py", run_name="__main__")
