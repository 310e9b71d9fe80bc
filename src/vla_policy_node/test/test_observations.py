"""Streams are paired by stamp; what is wrong with one is said by its name."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_policy_node.core.observations import ObservationBuffer, StreamError, Tolerances

S = 10**9
NAMES = ("b", "a", "spare")


def make(**tolerances):
    return ObservationBuffer(("front", "wrist"), ("a", "b"), Tolerances(**tolerances))


def joints(buffer, t, a=0.0, b=0.0, velocity=0.0, received=None):
    stamp = round(t * S)
    buffer.add_joints(
        stamp, stamp if received is None else round(received * S), NAMES, [b, a, 9.0], [velocity, velocity, 0]
    )


def image(buffer, camera, t, fingerprint=None):
    stamp = round(t * S)
    buffer.add_image(camera, stamp, stamp, f"{camera}@{t:g}", hash(t) if fingerprint is None else fingerprint)


def healthy(buffer, until=1.0):
    for k in range(round(until * 100) + 1):
        joints(buffer, k / 100, a=k / 100, b=-k / 100, velocity=1.0)
        if k % 10 == 0:
            image(buffer, "front", k / 100)
            image(buffer, "wrist", k / 100)
    return buffer


def problems(buffer, now, watch=None):
    with pytest.raises(StreamError) as caught:
        buffer.pair(round(now * S), round((now if watch is None else watch) * S))
    return caught.value.problems


def test_pairs_the_newest_common_instant():
    buffer = healthy(make(), 1.0)
    image(buffer, "front", 1.1)  # the wrist has not come yet
    paired = buffer.pair(round(1.12 * S), round(1.12 * S))
    assert paired.stamp_ns == 1.0 * S and paired.images == {"front": "front@1", "wrist": "wrist@1"}
    np.testing.assert_allclose(paired.positions, [1.0, -1.0])


def test_interpolates_joints_in_the_robots_order():
    buffer = make(skew=0.06)
    joints(buffer, 1.0, a=1.0, b=5.0, velocity=0.0)
    joints(buffer, 1.1, a=2.0, b=7.0, velocity=1.0)
    image(buffer, "front", 1.025)
    image(buffer, "wrist", 1.0)
    paired = buffer.pair(round(1.1 * S), round(1.1 * S))
    assert paired.stamp_ns == 1_025_000_000
    np.testing.assert_allclose(paired.positions, [1.25, 5.5])
    np.testing.assert_allclose(paired.velocities, [0.25, 0.25])


def test_nothing_yet():
    assert problems(make(), 1.0) == (
        "camera front: no image yet",
        "camera wrist: no image yet",
        "joint_states: none yet",
    )


@pytest.mark.parametrize("camera", ["front", "wrist"])
def test_stale_camera_alone_is_named(camera):
    buffer = healthy(make(), 1.0)
    other = "wrist" if camera == "front" else "front"
    for k in range(101, 160):
        joints(buffer, k / 100, a=1.0)
        if k % 10 == 0:
            image(buffer, other, k / 100)
    (problem,) = problems(buffer, 1.59)
    assert problem == f"camera {camera}: silent for 0.59 s (> 0.35 s)"


def test_a_repeated_stamp_is_not_fresh():
    buffer = healthy(make(), 1.0)
    for k in range(1, 60):
        joints(buffer, 1 + k / 100, a=1.0)
        buffer.add_image("front", S, round((1 + k / 100) * S), "again", k)
        image(buffer, "wrist", 1 + k / 100)
    (problem,) = problems(buffer, 1.59)
    assert problem.startswith("camera front: silent for 0.59 s")


def test_late_stamps_of_a_live_stream():
    buffer = healthy(make(), 1.0)
    assert problems(buffer, 1.6, watch=1.0)[0] == "camera front: stale, stamped 0.60 s ago (> 0.35 s)"


def test_stamps_in_the_future():
    buffer = healthy(make(), 1.0)
    image(buffer, "wrist", 4600.0)
    assert any("camera wrist: stamp 4598" in p and "synchronise the clocks" in p for p in problems(buffer, 1.05))


def test_skewed_cameras():
    buffer = make()
    joints(buffer, 1.0)
    image(buffer, "front", 1.0)
    image(buffer, "wrist", 1.2)
    joints(buffer, 1.2)
    (problem,) = problems(buffer, 1.2)
    assert problem.startswith("camera front: 0.200 s behind camera wrist (> 0.05 s)")


@pytest.mark.parametrize(("quick", "behind"), [(30, 0.17), (60, 0.12), (90, 0.1)])
def test_a_camera_whose_pictures_take_longer_is_paired_with_what_the_other_saw_then(quick, behind):
    buffer = make()
    arrivals = [(k / quick + 0.01, "front", k / quick) for k in range(quick)]
    arrivals += [(k / 30 + 0.01 + behind, "wrist", k / 30) for k in range(30)]
    arrivals += [(k / 100 + 0.002, "", k / 100) for k in range(100)]
    paired = 0
    for now, camera, taken in sorted(arrivals):
        if camera:
            buffer.add_image(camera, round(taken * S), round(now * S), camera, hash(taken))
        else:
            joints(buffer, taken, a=taken, velocity=1.0, received=now)
        if camera == "wrist" and 0.5 < now < 1.0:
            buffer.pair(round(now * S), round(now * S))
            paired += 1
    assert paired > 10


def test_frozen_camera():
    """The same picture while the robot moves; at rest a still picture is a still scene."""
    buffer = make()
    for k in range(100):
        joints(buffer, k / 100, a=0.5 * (k / 100), velocity=0.5)
        if k % 10 == 0:
            image(buffer, "front", k / 100, fingerprint=1)
            image(buffer, "wrist", k / 100)
    (problem,) = problems(buffer, 0.99)
    assert problem.startswith("camera front: frozen, the same picture for 0.99 s while 'a' moved 0.")
    resting = make()
    for k in range(100):
        joints(resting, k / 100)
        image(resting, "front", k / 100, fingerprint=1)
        image(resting, "wrist", k / 100, fingerprint=1)
    assert resting.pair(round(0.99 * S), round(0.99 * S)).stamp_ns == round(0.99 * S)


def test_a_robot_put_elsewhere_does_not_look_frozen():
    """A simulator's reset: the first picture of the new scene comes before the first joint state of it."""
    buffer = healthy(make(), 1.0)
    for camera in ("front", "wrist"):
        image(buffer, camera, 1.1, fingerprint=77)
    for k in range(110, 150):
        joints(buffer, k / 100, a=0.0)
        if k % 10 == 0:
            image(buffer, "front", k / 100, fingerprint=77)
            image(buffer, "wrist", k / 100, fingerprint=77)
    assert buffer.pair(round(1.49 * S), round(1.49 * S)).stamp_ns == round(1.4 * S)


def test_frozen_joints():
    buffer = healthy(make(), 1.0)
    for k in range(101, 160):
        joints(buffer, k / 100, a=1.0, b=-1.0, velocity=0.5)
        image(buffer, "front", k / 100)
        image(buffer, "wrist", k / 100)
    (problem,) = problems(buffer, 1.59)
    assert problem == "joint_states: frozen, positions the same for 0.59 s while 'a' claims 0.500 rad/s"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((("a",), [0.0], [0.0]), "joint_states: unknown joint 'b'; known: a"),
        ((("a", "b", "b"), [0, 0, 0], [0, 0, 0]), "hold duplicates"),
        ((("a", "b"), [0.0], [0.0, 0.0]), "joint_states: 1 positions for 2 names"),
        ((("a", "b"), [0.0, 0.0], []), "joint_states: 0 velocities for 2 names; the broadcaster must publish them"),
        ((("a", "b"), [0.0, float("nan")], [0.0, 0.0]), "joint_states: positions of 'b' are nan"),
    ],
)
def test_malformed_joint_states(arguments, words):
    buffer = healthy(make(), 1.0)
    buffer.add_joints(round(1.01 * S), round(1.01 * S), *arguments)
    assert words in problems(buffer, 1.01)[0]
    joints(buffer, 1.02, a=1.0)
    assert buffer.pair(round(1.02 * S), round(1.02 * S))


def test_refused_images_are_named_until_they_are_right():
    buffer = healthy(make(), 1.0)
    buffer.refuse_images("wrist", "camera wrist: size 1x1, robot.yaml says 2x2")
    assert problems(buffer, 1.0) == ("camera wrist: size 1x1, robot.yaml says 2x2",)
    buffer.refuse_images("wrist", "")
    buffer.pair(S, S)


def test_a_driver_that_starts_again_with_an_older_clock():
    buffer = healthy(make(), 5.0)
    healthy(buffer, 1.0)
    assert buffer.pair(S, S).stamp_ns == S


def test_no_cameras():
    buffer = ObservationBuffer((), ("a", "b"))
    joints(buffer, 1.0, a=0.25)
    paired = buffer.pair(S, S)
    assert paired.stamp_ns == S and paired.images == {} and paired.positions[0] == 0.25


@given(
    st.lists(st.tuples(st.sampled_from(["front", "wrist", "joints"]), st.integers(0, 3 * S)), max_size=60),
    st.integers(0, 4 * S),
)
def test_whatever_comes_it_is_paired_right_or_refused_by_name(messages, now):
    buffer = make()
    for kind, stamp in messages:
        if kind == "joints":
            buffer.add_joints(stamp, stamp, NAMES, [stamp / S, stamp / S, 0], [1.0, 1.0, 0])
        else:
            buffer.add_image(kind, stamp, stamp, stamp, stamp)
    try:
        paired = buffer.pair(now, now)
    except StreamError as error:
        assert error.problems
        assert all(p.startswith(("camera front: ", "camera wrist: ", "joint_states: ")) for p in error.problems)
        return
    tolerances = Tolerances()
    stamps = list(paired.images.values())
    assert paired.stamp_ns == max(stamps) and max(stamps) - min(stamps) <= tolerances.skew * S
    assert -tolerances.future * S <= now - min(stamps) <= (tolerances.image_age + tolerances.skew) * S
    assert abs(paired.positions[0] - paired.stamp_ns / S) <= tolerances.skew + 1e-9


def test_velocities_lead_over_the_last_milliseconds_before_an_image():
    buffer = healthy(make(), 1.0)
    image(buffer, "front", 1.008)
    image(buffer, "wrist", 1.008)
    now = round(1.01 * S)
    assert buffer.joints_reach(round(1.008 * S), now, ahead=True)
    assert not buffer.joints_reach(round(1.008 * S), now) and not buffer.joints_reach(round(1.02 * S), now, ahead=True)
    np.testing.assert_allclose(buffer.pair(now, now).positions, [1.008, -0.992])
