"""What all tests of this package share."""

from hypothesis import HealthCheck, settings

# A busy machine is no error of the code.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")
