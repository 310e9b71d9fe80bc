"""The connection that comes back: pauses, retries and words, with a clock of our own."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_contract.errors import ConfigError, InferenceError, Unavailable
from vla_policy_node.backends.options import read_options
from vla_policy_node.backends.remote import Connection, LinkError, RemoteOptions

OPTIONS = RemoteOptions(
    port=1, inputs={"prompt": {"text": "instruction"}}, action={"space": "joint_position"}, horizon=2, dt=0.1
)


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class ScriptedLink:
    """Does what the script says: `up` says whether a connection can be made, `answers` what the exchanges give."""

    address = "test://server"

    def __init__(self, clock):
        self.up, self.answers, self.opened, self.timeouts = True, [], [], []
        self.probed, self.gone = 0, None
        self._clock = clock

    def open(self):
        self.opened.append(self._clock.now)
        if not self.up:
            raise LinkError("connection refused")

    def exchange(self, request, timeout):
        self.timeouts.append(timeout)
        answer = self.answers.pop(0) if self.answers else request
        if isinstance(answer, Exception):
            raise answer
        return answer

    def probe(self, timeout):
        self.probed += 1
        if self.gone is not None:
            gone, self.gone = self.gone, None
            raise gone

    def close(self):
        pass


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def link(clock):
    return ScriptedLink(clock)


@pytest.fixture
def connection(link, clock):
    return Connection(link, OPTIONS, clock)


def test_one_connection_serves_many_questions_and_only_the_first_may_take_long(connection, link):
    assert [connection.ask(i) for i in range(5)] == list(range(5))
    assert len(link.opened) == 1
    assert link.timeouts == [OPTIONS.first_timeout] + [OPTIONS.timeout] * 4


def test_questions_that_the_model_is_not_run_for_neither_take_long_nor_warm_it(connection, link):
    connection.ask("reset", infers=False)
    connection.ask("?")
    connection.ask("reset", infers=False)
    assert link.timeouts == [OPTIONS.timeout, OPTIONS.first_timeout, OPTIONS.timeout]


def test_pauses_double_up_to_a_limit_and_nobody_knocks_in_between(connection, link, clock):
    link.up = False
    for _ in range(200):
        with pytest.raises(InferenceError):
            connection.ask("?")
        clock.now += 0.25
    pauses = [later - earlier for earlier, later in zip(link.opened, link.opened[1:], strict=False)]
    assert pauses[:6] == pytest.approx([0.5, 1.0, 2.0, 4.0, 8.0, 8.0])
    assert max(pauses) == OPTIONS.longest_retry


def test_the_caller_hears_why_since_when_and_when_again(connection, link, clock):
    link.up = False
    with pytest.raises(InferenceError, match=r"test://server: connection refused; next attempt in 0\.5 s"):
        connection.ask("?")
    clock.now += 0.2
    with pytest.raises(InferenceError, match=r"no answer since 0\.2 s \(connection refused\); next attempt in 0\.3 s"):
        connection.ask("?")


def test_the_first_question_after_the_server_is_back_is_answered(connection, link, clock):
    assert connection.ask(1) == 1
    link.answers, link.up = [LinkError("hung up", closed=True)], False
    with pytest.raises(InferenceError, match="connection refused"):
        connection.ask(2)
    link.up = True
    clock.now += OPTIONS.shortest_retry
    assert connection.ask(3) == 3
    link.up, link.answers = False, [LinkError("timed out")]
    with pytest.raises(InferenceError, match=r"timed out; next attempt in 0\.5 s"):
        connection.ask(4)


def test_a_connection_that_ended_while_idle_is_made_again_within_the_question(connection, link):
    assert connection.ask(1) == 1
    link.answers = [LinkError("hung up", closed=True)]
    assert connection.ask(2) == 2
    assert len(link.opened) == 2


def test_a_server_that_hangs_up_on_a_question_is_not_asked_for_ever(connection, link):
    connection.ask(1)
    link.answers = [LinkError("hung up", closed=True)] * 2
    with pytest.raises(InferenceError, match="hung up"):
        connection.ask(2)
    assert len(link.opened) == 2


def test_after_a_time_out_the_connection_is_not_used_again(connection, link, clock):
    connection.ask(1)
    link.answers = [LinkError("no answer for 2 s")]
    with pytest.raises(InferenceError, match="no answer for 2 s"):
        connection.ask(2)
    clock.now += 10
    assert connection.ask(3) == 3
    assert len(link.opened) == 2


def test_an_error_of_the_server_that_leaves_the_connection_intact_passes_through(connection, link):
    connection.ask(1)
    link.answers = [InferenceError("no such task")]
    with pytest.raises(InferenceError, match="no such task"):
        connection.ask(2)
    assert connection.ask(3) == 3 and len(link.opened) == 1


@given(
    st.lists(st.tuples(st.booleans(), st.sampled_from(["ok", "closed", "late", "error"]), st.floats(0, 3)), max_size=30)
)
@settings(max_examples=100, deadline=None)
def test_whatever_the_server_does_a_question_gets_its_own_answer_or_an_inference_error(script):
    clock = Clock()
    link = ScriptedLink(clock)
    connection = Connection(link, OPTIONS, clock)
    faults = {"closed": LinkError("hung up", closed=True), "late": LinkError("late"), "error": InferenceError("no")}
    for number, (up, fate, pause) in enumerate(script):
        link.up = up
        link.answers = [faults[fate]] if fate in faults else []
        try:
            assert connection.ask(number) == number
        except InferenceError as error:
            assert str(error)
        clock.now += pause
    link.up, link.answers = True, []
    clock.now += OPTIONS.longest_retry
    assert connection.ask("last") == "last"


class SlowLink(ScriptedLink):
    """Uses all the time that it is given, then does what the script says."""

    def open(self):
        super().open()
        self._clock.now += OPTIONS.opening

    def exchange(self, request, timeout):
        self._clock.now += timeout
        return super().exchange(request, timeout)


@given(st.lists(st.sampled_from(["ok", "closed", "late", "error"]), max_size=12), st.integers(0, 12))
@settings(max_examples=200, deadline=None)
def test_one_inference_never_waits_longer_than_the_patience_says(fates, kinds):
    clock = Clock()
    link = SlowLink(clock)
    connection = Connection(link, OPTIONS, clock)
    faults = {"closed": LinkError("hung up", closed=True), "late": LinkError("late"), "error": InferenceError("no")}
    link.answers = [faults.get(fate, "ok") for fate in fates]
    for turn in range(6):
        began, deadline = clock.now, connection.deadline()
        try:
            if (kinds >> turn) & 1:
                connection.ask("reset", infers=False, deadline=deadline)
            connection.ask("?", deadline=deadline)
        except InferenceError:
            pass
        assert clock.now - began <= connection.patience + 1e-9
        clock.now += OPTIONS.longest_retry


def test_on_a_connection_that_works_only_the_short_time_out_is_waited_for(connection, link):
    connection.ask(1)
    link.answers = [LinkError("no answer for 2 s")]
    with pytest.raises(Unavailable):
        connection.ask(2)
    assert link.timeouts[-1] == OPTIONS.timeout


def test_an_outage_is_told_apart_from_a_server_that_could_not_infer(connection, link, clock):
    connection.ask(1)
    link.answers = [LinkError("the server could not infer: no such task", refused=True)]
    with pytest.raises(InferenceError, match="no such task") as caught:
        connection.ask(2)
    assert not isinstance(caught.value, Unavailable)
    link.up = False
    clock.now += 1
    with pytest.raises(Unavailable):
        connection.ask(3)
    with pytest.raises(Unavailable, match="next attempt in"):
        connection.ask(4)


def test_a_check_connects_and_finds_out_that_the_server_went_and_came(connection, link, clock):
    link.up = False
    with pytest.raises(Unavailable, match=r"test://server: connection refused; next attempt in 0\.5 s"):
        connection.check()
    link.up = True
    with pytest.raises(Unavailable, match="no answer since"):
        connection.check()  # pauses are kept
    clock.now += 0.5
    connection.check()
    assert len(link.opened) == 2 and link.probed == 0 and link.timeouts == []
    connection.check()
    assert link.probed == 1
    link.gone = LinkError("hung up", closed=True)
    connection.check()  # another server is there already
    assert len(link.opened) == 3
    link.gone = LinkError("no answer to a ping for 2 s")
    with pytest.raises(Unavailable, match="no answer to a ping"):
        connection.check()
    clock.now += 0.5
    assert connection.ask("?") == "?" and link.timeouts == [OPTIONS.first_timeout]


def test_options_that_are_wrong_are_all_named():
    with pytest.raises(ConfigError) as caught:
        read_options(RemoteOptions, "openpi", {"port": 70000, "hots": "x", "inputs": {}, "action": {"space": "x"}})
    for key in ("port", "hots", "action.space", "horizon", "dt"):
        assert key in str(caught.value)


def test_a_key_comes_from_a_file_that_must_be_there_and_hold_one_line(tmp_path):
    path = tmp_path / "key"
    options = OPTIONS.model_copy(update={"api_key_file": str(path)})
    with pytest.raises(ConfigError, match="cannot be read"):
        options.api_key()
    path.write_text("secret\n")
    assert options.api_key() == "secret" and OPTIONS.api_key() == ""
    path.write_text("one\ntwo\n")
    with pytest.raises(ConfigError, match="one line"):
        options.api_key()


def test_servers_are_looked_for_on_this_machine_unless_the_file_says_otherwise():
    assert OPTIONS.host == "127.0.0.1"
