"""What holds for all tests: an example may take as long as a busy machine needs."""

from hypothesis import settings

settings.register_profile("spikeproof", deadline=None)
settings.load_profile("spikeproof")
