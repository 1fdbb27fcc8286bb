"""What holds for all tests: an example may take as long as a busy machine needs."""

from hypothesis import HealthCheck, settings

settings.register_profile("spikeproof", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("spikeproof")
