"""Reduced speed: no link moves faster than `reduced_speed` of the safety file while it is switched on."""

from std_srvs.srv import SetBool

from vla_safety.adapters import Adapter, Host
from vla_safety.building import Parts
from vla_safety.core.findings import Finding
from vla_safety.core.latch import CarriedFile


class ReducedSpeed(Adapter):
    """`~/reduced_speed` switches it, at any time. A robot that is too fast stops first, along what was verified.

    `memory` keeps it for the next start; None: it is off then.
    """

    def __init__(self, host: Host, memory: CarriedFile | None = None):
        super().__init__(host)
        self._parts: Parts | None = None
        self._memory = memory
        host.create_service(SetBool, "~/reduced_speed", self._switch)

    def rebuilt(self, parts: Parts) -> None:
        self._parts = parts

    def reconfigured(self, parts: Parts) -> None:
        self._parts = parts

    def diagnostics(self) -> dict[str, object]:
        if self._parts is None:
            return {}
        on = self._parts.setup.reduced
        return {"reduced_speed": f"on ({self._parts.config.reduced_speed:g} m/s)" if on else "off"}

    def _switch(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        wanted = "on" if request.data else "off"
        if not request.data and (why := self.host.objection()):
            response.success, response.message = False, why
            return response
        answer = self.host.reconfigure(Finding("reduced", wanted), reduced=bool(request.data))
        response.success, response.message = answer.success, f"reduced speed {wanted}: {answer.message}"
        if answer.success and self._parts is not None and self._memory is not None:
            setup = self._parts.setup
            unsaved = self._memory.keep(setup.tool, setup.payload, setup.reduced)
            if unsaved:
                response.message += f"; switch it again after a restart, for it could not be kept: {unsaved}"
        self.host.get_logger().info(response.message)
        return response
