"""What holds for all tests: an example may take as long as a busy machine needs, and processes that share the
processors have one thread each."""

import os

from hypothesis import HealthCheck, settings

settings.register_profile("spikeproof", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("spikeproof")

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
