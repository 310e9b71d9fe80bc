import pytest
import rclpy


@pytest.fixture
def context():
    rclpy.init()
    yield
    rclpy.try_shutdown()
