"""What the project measures; `python -m benchmarks.run SUITE` is the way in."""

import os

# Threads of torch's OpenMP that spin for milliseconds after a call steal time from the next arm;
# those that never spin make torch twice as slow on small inputs. The library reads this when it
# loads, so it is set before anything can import torch.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
