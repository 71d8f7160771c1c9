"""A fresh interpreter that imports what a worker has loaded, and says so: what a start would cost without a nursery.

Imports what the nursery and then the worker import; says hello as a worker says ``ready``.
"""

import os

import garrison.supervisor.nursery.process
import garrison.workers.process
import garrison.workers.runtime.assignment
import garrison.workers.runtime.process  # noqa: F401

os.write(1, b"r")
os.read(0, 1)
