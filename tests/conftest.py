"""Settings for all tests."""

from hypothesis import settings

# A slow machine is not a failure: timings belong to the benchmarks.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
