"""What our server says of an observation that is no observation."""

import numpy as np
import pytest
from remote import FR3, observation
from test_serve_manners import EchoBackend

from vla_contract.errors import InferenceError
from vla_policy_node.backends.encodings import pack_openpi
from vla_policy_node.core.model_inputs import ModelInputs, robot_layout
from vla_policy_node.serve import PolicyServer
from vla_policy_node.serving.engine import LocalEngine

LAYOUT = robot_layout(FR3, ("front",))


@pytest.fixture
def server():
    return PolicyServer(LocalEngine(EchoBackend()), FR3)


@pytest.mark.parametrize("as_array", [True, False])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_state_that_is_not_finite_is_named_with_entry_and_value(server, value, as_array):
    message = ModelInputs(LAYOUT, FR3).compose(observation())
    state = np.array(message["observation/joint_position"])
    state[2] = value
    message["observation/joint_position"] = state if as_array else state.tolist()
    words = rf"'observation/joint_position'\[2\], joint_position:fr3_joint3, is {value}, expected a finite number"
    with pytest.raises(InferenceError, match=words):
        server._parse(pack_openpi(message))


def test_what_cannot_be_read_is_called_a_message_and_no_reply(server):
    with pytest.raises(InferenceError, match="the message of 1 bytes is not msgpack"):
        server._parse(b"\xc1")


def test_a_state_of_another_length_is_still_told_as_such(server):
    message = ModelInputs(LAYOUT, FR3).compose(observation())
    message["observation/joint_position"] = np.zeros(3)
    with pytest.raises(InferenceError, match=r"of shape \(3,\): expected finite \(8,\)"):
        server._parse(pack_openpi(message))
