"""Settings of every test."""

from hypothesis import settings

settings.register_profile("swarm", deadline=None)  # a busy machine is no fault of the code's
settings.load_profile("swarm")
