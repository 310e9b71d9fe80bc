"""The policy that ships: language-conditioned flow matching over chunks of tool motion (torch)."""

from vla_policy_node.backends.flow.backend import FlowBackend, load

__all__ = ["FlowBackend", "load"]
