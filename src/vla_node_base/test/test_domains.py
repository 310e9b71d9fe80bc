"""ROS domains are not shared by accident."""

import socket

from vla_node_base.domains import _silent, free_domain


def test_two_at_once_differ():
    with free_domain() as first, free_domain() as second:
        assert first != second


def test_a_domain_with_a_listener_is_not_free():
    with free_domain() as domain, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        assert _silent(domain)
        listener.bind(("", 7400 + 250 * domain))
        assert not _silent(domain)
