"""The SROS 2 policy against the running system: whatever a node really has is allowed to it."""

from vla_bringup.files import find
from vla_bringup.security import enclaves
from vla_contract.robot import load_robot

_ACTION = "/_action/"


def test_the_policy_allows_what_the_nodes_do(start):
    session = start("vla_sim", "vla_safety", "vla_policy")
    node = session.operator.node
    rights = {e.node: e for e in enclaves(load_robot(find("robots", "fr3_sim")), simulator=True)}
    for name in ("vla_sim", "vla_safety", "vla_policy", "vla_operator"):
        enclave = rights[name]
        asked = (
            (node.get_publisher_names_and_types_by_node, enclave.all_published, enclave.executes),
            (node.get_subscriber_names_and_types_by_node, enclave.all_subscribed, enclave.asks),
            (node.get_service_names_and_types_by_node, enclave.all_served, enclave.executes),
            (node.get_client_names_and_types_by_node, enclave.calls, enclave.asks),
        )
        session.operator.wait(
            lambda name=name: len(node.get_publisher_names_and_types_by_node(name, "/")) > 1,  # type: ignore[misc]
            20.0,
            lambda name=name: f"{name} was not discovered",  # type: ignore[misc]
        )
        for look, allowed, actions in asked:
            found = {topic for topic, _ in look(name, "/")}
            denied = {t for t in found if t not in allowed and t.partition(_ACTION)[0] not in actions}
            assert not denied, f"{name}: {look.__name__} has {sorted(denied)}, the policy does not allow them"
