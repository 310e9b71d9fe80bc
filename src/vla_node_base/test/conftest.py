import pytest
import rclpy
from hypothesis import HealthCheck, settings

# A busy machine is no error of the code.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")


@pytest.fixture
def context():
    rclpy.init()
    yield
    rclpy.try_shutdown()
