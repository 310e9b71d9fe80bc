"""What people ask of the filter by services: arm, disarm, e-stop, reset, reload."""

from collections.abc import Callable

from std_srvs.srv import Trigger

from vla_safety.adapters import Adapter, Host
from vla_safety.core.filter import SafetyFilter
from vla_safety.core.records import Answer
from vla_safety.core.watchdogs import Instant
from vla_safety.recording import RecordedFilter

Act = Callable[[SafetyFilter | RecordedFilter, Instant], Answer]

_STOPS = ("disarm", "estop")  # asked for at any time


class People(Adapter):
    """`~/arm`, `~/disarm`, `~/estop`, `~/reset` and `~/reload`. An e-stop that is asked for before there is a filter is
    latched as soon as there is one.

    Args:
        arm, reload: what only the node can do.
    """

    def __init__(self, host: Host, arm: Act, reload: Act):
        super().__init__(host)
        self._estop_asked = False
        acts: dict[str, Act] = {
            "arm": arm,
            "disarm": lambda called, now: called.disarm(now),
            "estop": lambda called, now: called.estop(now),
            "reset": lambda called, now: called.reset(now),
            "reload": reload,
        }
        for name, act in acts.items():
            host.create_service(Trigger, f"~/{name}", self._service(name, act))

    def check(self, now: Instant) -> None:
        if self._estop_asked and self.host.filter is not None:
            self._estop_asked = False
            self.host.filter.estop(now)
            self.host.flush(now)

    def _service(self, name: str, act: Act) -> Callable[[Trigger.Request, Trigger.Response], Trigger.Response]:
        def serve(_: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
            now = self.host.instant()
            self.check(now)
            answer = self._answer(name, act, now)
            if self.host.filter is not None:
                self.host.flush(now)
            response.success, response.message = answer.success, answer.message
            self.host.get_logger().info(f"{name}: {answer.message}")
            return response

        return serve

    def _answer(self, name: str, act: Act, now: Instant) -> Answer:
        called, why = self.host.filter, self.host.objection(moves=name == "arm")
        if called is None and name == "estop":
            self._estop_asked = True
            return Answer(True, f"{why}: nothing is commanded; the e-stop is latched as soon as there is one")
        if called is None or (why and name not in _STOPS):
            return Answer(False, why)
        return act(called, now)
