"""An engine on Ray Serve: calls of several robots that come together are answered in one pass of the network, by one or
several copies of the policy, on this machine or on a cluster.

Only this suite's own processes speak to Ray. Where Ray is started here, its processes find each other by loopback and
want a token. On a cluster, who reaches Ray's ports and has its token can run code: keep both to those you trust.
"""

import asyncio
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from vla_contract.errors import ConfigError, InferenceError, VlaError
from vla_contract.policy import PolicyMetadata
from vla_contract.robot import load_robot
from vla_policy_node.serving.engine import Answering, Call, Reply, loaded
from vla_policy_node.worker.client import WorkerSpec

_log = logging.getLogger(__name__)

_OBJECT_STORE = 256 * 1024 * 1024  # bytes; holds the images of the calls under way
# Of a Ray that is started here. Its replicas' ports listen everywhere, whatever is said; without the token, which Ray
# keeps in the user's home, they answer nobody.
_ALONE = {
    "RAY_AUTH_MODE": "token",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on every system: all other ports listen on 127.0.0.1
}
_CALLS = 256  # under way at a replica and waiting for it; more than the front lets in


@dataclass(frozen=True)
class RayOptions:
    """How a policy is served on Ray.

    Attributes:
        address: of a running cluster (`auto`, `host:port`, `ray://…`); empty: Ray is started here, on loopback.
        replicas: copies of the policy.
        batch: calls in one pass at most.
        batch_wait: s that a first call waits for others to come along.
        gpus: of one replica, parts of one allowed; None: what there are, shared among the replicas, at most one each.
    """

    address: str = ""
    replicas: int = 1
    batch: int = 8
    batch_wait: float = 0.005
    gpus: float | None = None


class Replica:
    """One copy of the policy; Ray Serve makes it and collects calls into batches. Paths are those of its machine."""

    def __init__(self, spec: WorkerSpec):
        self._backend = loaded(spec, load_robot(spec.robot))
        self._answering = Answering(self._backend)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="inference")

    async def metadata(self) -> dict[str, Any]:
        """Of the policy."""
        return self._backend.metadata.model_dump()

    async def infer(self, calls: list[Call]) -> list[Reply | str]:
        """For each call its reply, or why there is none. Off the event loop: the next calls gather meanwhile."""
        loop = asyncio.get_running_loop()
        replies = await loop.run_in_executor(self._thread, self._answering.answer, calls)
        return [str(reply) if isinstance(reply, InferenceError) else reply for reply in replies]


class RayEngine:
    """Deploys a policy and sends calls to it.

    Args:
        spec: what a replica loads; name: of the application on the cluster; one that is there is replaced.

    Raises:
        ConfigError: when Ray is missing, cannot be reached, or the policy cannot be loaded there.
    """

    def __init__(self, spec: WorkerSpec, options: RayOptions, name: str):
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # as `ray start` has it
        if not options.address:
            os.environ.update(_ALONE)
        try:
            import ray
            from ray import serve
        except ImportError as error:
            raise ConfigError(
                f"serving on Ray needs Python package 'ray[serve]' ({error}); "
                "install it with ./vla setup --with serve, or leave --ray out"
            ) from error
        self._ray, self._serve, self._name, self._own = ray, serve, name, not options.address
        try:
            self._start(options)
            deployment: Any = serve.deployment(
                _batched(serve, options),
                name="policy",
                num_replicas=options.replicas,
                max_ongoing_requests=_CALLS,
                ray_actor_options={"num_cpus": 1, "num_gpus": self._gpus(options)},
                logging_config={"log_level": "WARNING", "enable_access_log": False},
            )
            self._handle = serve.run(deployment.bind(spec), name=name, route_prefix=None)
            self._metadata = PolicyMetadata.model_validate(self._handle.metadata.remote().result(timeout_s=60))
        except VlaError:
            raise
        except ConnectionError as error:
            where = options.address or "this machine"
            raise ConfigError(
                f"no Ray cluster answers at '{where}': {_reason(error)}; start it there (ray start --head), "
                "and keep its token in ~/.ray/auth_token here too"
            ) from error
        except Exception as error:  # of Ray, which has no common root for what happens while deploying
            self.close()
            raise ConfigError(
                f"the policy cannot be served on Ray: {type(error).__name__}: {_reason(error)}"
            ) from error

    def _start(self, options: RayOptions) -> None:
        if self._own:
            cores = max(os.cpu_count() or 1, options.replicas + 1)  # a matter of bookkeeping: replicas share the cores
            self._ray.init(
                address="local",  # not that of another Ray which happens to run here
                num_cpus=cores,
                include_dashboard=False,
                object_store_memory=_OBJECT_STORE,
                logging_level=logging.WARNING,
            )
        else:
            self._ray.init(address=options.address, logging_level=logging.WARNING)
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        self._serve.start(proxy_location="Disabled")  # clients come through our front, not through Ray's

    def _gpus(self, options: RayOptions) -> float:
        if options.gpus is not None:
            return options.gpus
        return min(1.0, self._ray.cluster_resources().get("GPU", 0.0) / options.replicas)

    @property
    def metadata(self) -> PolicyMetadata:
        """Of the policy."""
        return self._metadata

    async def infer(self, call: Call) -> Reply:
        """Raises InferenceError when there is no answer to this call, or the replica that was asked has ended."""
        try:
            reply = await self._handle.infer.remote(call)
        except self._ray.exceptions.RayError as error:
            raise InferenceError(
                f"the policy's replica could not answer: {type(error).__name__}; Ray starts another, ask again"
            ) from error
        if isinstance(reply, str):
            raise InferenceError(reply)
        return reply

    def close(self) -> None:
        """Takes the policy off the cluster; ends Ray if it was started here."""
        try:
            if self._own:
                self._ray.shutdown()
            elif self._ray.is_initialized():
                self._serve.delete(self._name)
        except Exception as error:  # the cluster may be gone already
            _log.warning("Ray does not end cleanly: %s", error)


def _batched(serve: Any, options: RayOptions) -> type[Replica]:
    """Replica whose `infer` takes one call from outside and answers in batches."""

    class Batched(Replica):
        infer = serve.batch(
            max_batch_size=options.batch,
            batch_wait_timeout_s=options.batch_wait,
        )(Replica.infer)

    return Batched


def _reason(error: Exception) -> str:
    """The last line that says something: Ray wraps a replica's error into its stack traces."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in reversed(lines) if "Error" in line), lines[-1] if lines else "no reason given")
