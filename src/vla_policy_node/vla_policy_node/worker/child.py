"""The worker's side. Started as a script by any interpreter that has NumPy, msgpack, pydantic, PyYAML and OpenCV.

    python child.py --socket FD --memory FD --parent PID --package NAME=FOLDER …

It imports the suite's ROS-free packages from the folders that the node names, and nothing else of its environment.
"""

import argparse
import ctypes
import gc
import importlib.util
import mmap
import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import Any

_PR_SET_PDEATHSIG = 1


class _OnlyThese(MetaPathFinder):
    """Finds the named packages, and only them: their parent folder may hold another interpreter's packages."""

    def __init__(self, packages: dict[str, str]):
        self._packages = packages

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        folder = self._packages.get(name)
        if folder is None:
            return None
        return importlib.util.spec_from_file_location(
            name, os.path.join(folder, "__init__.py"), submodule_search_locations=[folder]
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", type=int, required=True)
    parser.add_argument("--memory", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--package", action="append", default=[])
    arguments = parser.parse_args()
    _die_with(arguments.parent)
    # This file's own folder came first on the path; its modules have names that others may have too.
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or ".") != here]
    sys.meta_path.insert(0, _OnlyThese(dict(item.split("=", 1) for item in arguments.package)))
    # What a model prints must not look like an answer, and is worth a look in the log.
    sys.stdout = sys.stderr
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the node's business
    _Worker(socket.socket(fileno=arguments.socket), arguments.memory).serve()


def _die_with(parent: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)  # it died before the line above


class _Worker:
    def __init__(self, connection: socket.socket, memory: int):
        from vla_contract.errors import Unavailable  # only now can they be found
        from vla_policy_node.worker import wire

        self._wire, self._unavailable = wire, Unavailable
        self._connection = connection
        size = os.fstat(memory).st_size
        self._memory = mmap.mmap(memory, size, prot=mmap.PROT_READ) if size else None
        self._backend: Any = None
        self._robot: Any = None
        self._kinematics: Any = None
        self._cold = True
        self._nonsense = ""  # of the server, that was told last

    def serve(self) -> None:
        threading.Thread(target=self._end_with_node, daemon=True).start()
        answers = {"load": self._load, "infer": self._infer, "reset": self._reset, "check": self._check}
        while (request := self._wire.receive(self._connection)) is not None:
            try:
                answer = answers[request["do"]](request)
            except Exception as error:
                trace = "" if _known(error) else _printable(traceback.format_exc())
                answer = {"error": _words(error), "trace": trace, "unavailable": isinstance(error, self._unavailable)}
            self._connection.sendall(self._frame(answer, request["id"]))
        os._exit(0)

    def _frame(self, answer: dict[str, Any], identifier: int) -> bytes:
        try:
            return self._wire.pack({**answer, "id": identifier})
        except self._wire.WireError as error:  # a backend may answer anything
            return self._wire.pack({"error": f"the backend's answer {_words(error)}", "id": identifier})

    def _end_with_node(self) -> None:
        """Ends the process when the node closes the socket, also in the middle of an inference."""
        closed = select.poll()
        closed.register(self._connection, select.POLLRDHUP)
        closed.poll()
        os._exit(0)

    def _load(self, request: dict[str, Any]) -> dict[str, Any]:
        from pathlib import Path

        from vla_contract.robot import load_robot
        from vla_policy_node.backends import ServedBackend, load_backend

        started = time.perf_counter()
        self._robot = robot = load_robot(request["robot"])
        self._backend = load_backend(request["backend"], Path(request["checkpoint"]), robot, request["options"])
        self._kinematics, no_paths = _kinematics(robot)
        server: dict[str, Any] = {}
        if isinstance(self._backend, ServedBackend):
            # Loading does not wait for a server: the first check warms it up.
            server = {"server": str(self._backend.server), "patience": float(self._backend.patience)}
        else:
            self._warm_up(2)
        # What was made until now stays: no full round of the garbage collector through a model's modules in mid-motion.
        gc.collect()
        gc.freeze()
        metadata = self._backend.metadata.model_dump(mode="json")
        seconds = time.perf_counter() - started
        return {"metadata": metadata, "seconds": seconds, "gpu": _gpu_memory(), "no_paths": no_paths, **server}

    def _check(self, request: dict[str, Any]) -> dict[str, Any]:
        """Whether the server of a policy that runs elsewhere is there. Raises Unavailable when it is not, or what it
        says makes no sense to the backend: it may be mended, and this process need not end for that."""
        try:
            if self._cold:
                self._warm_up(1, served=True)
                self._cold = False
            else:
                self._backend.check()
        except self._unavailable:
            raise
        except Exception as error:
            words = f"{self._backend.server}: its answer cannot be used: {_words(error)}; "
            words += "mend it, or correct the policy file"
            if words != self._nonsense:
                traceback.print_exc()
                self._nonsense = words
            raise self._unavailable(words) from error
        return {"check": True}

    def _warm_up(self, times: int, served: bool = False) -> None:
        """The first inferences allocate, compile and cache; nobody should wait for that with a robot in motion.

        `served`: raises Unavailable when the policy's server is away.
        """
        from vla_contract.errors import InferenceError
        from vla_contract.policy import still

        seen = still(self._robot, self._backend.metadata)
        for _ in range(times):
            try:
                self._backend.infer(seen, None)
            except InferenceError as error:  # a black picture may well have no answer
                if served and isinstance(error, self._unavailable):
                    raise
        self._backend.reset()

    def _infer(self, request: dict[str, Any]) -> dict[str, Any]:
        import numpy as np

        from vla_contract.observation import Observation

        instruction = request["instruction"]
        earlier = tuple(
            Observation(one["stamp_ns"], self._images(one), one["positions"], one["velocities"], instruction)
            for one in request["earlier"]
        )
        observation = Observation(
            request["stamp_ns"],
            self._images(request),
            request["positions"],
            request["velocities"],
            instruction,
            request["extras"],
            earlier,
        )
        prefix = self._wire.trajectory_of(request["prefix"])
        started = time.perf_counter()
        chunk = self._backend.infer(observation, prefix)
        seconds = time.perf_counter() - started
        self._cold = False
        if chunk.shortened:
            print(chunk.shortened)
        path = None
        wanted = request["path"] and self._kinematics is not None and len(chunk.positions) <= self._wire.MOST_POINTS
        if wanted and chunk.joint_names == self._kinematics.joint_names:
            path = np.stack([self._kinematics.forward(row)[0] for row in chunk.positions])
        return {"chunk": self._wire.chunk_map(chunk), "seconds": seconds, "path": path, "gpu": _gpu_memory()}

    def _images(self, request: dict[str, Any]) -> dict[str, Any]:
        """Views of the shared memory, by camera."""
        import numpy as np

        images = {}
        for name, (offset, height, width) in request["images"].items():
            assert self._memory is not None
            flat = np.frombuffer(self._memory, dtype=np.uint8, count=height * width * 3, offset=offset)
            images[name] = flat.reshape(height, width, 3)
        return images

    def _reset(self, request: dict[str, Any]) -> dict[str, Any]:
        self._backend.reset()
        return {"reset": True}


def _known(error: Exception) -> bool:
    from vla_contract.errors import VlaError

    return isinstance(error, VlaError)


def _words(error: Exception) -> str:
    """What an error says, with its name if it is none of the suite's."""
    return _printable(str(error) if _known(error) else f"{type(error).__name__}: {error}")


def _printable(text: str) -> str:
    """Text that can be sent: file names may hold bytes that are none."""
    return text.encode(errors="backslashreplace").decode()


def _gpu_memory() -> float | None:
    """Bytes that this process holds on GPUs through torch; None: it uses none."""
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "cuda") or not torch.cuda.is_initialized():
        return None
    return float(sum(torch.cuda.memory_reserved(device) for device in range(torch.cuda.device_count())))


def _kinematics(robot: Any) -> tuple[Any, str]:
    """Where chunks lead the tool, for people to look at; or why not: not every interpreter has what that takes."""
    try:
        from vla_kinematics import ToolKinematics
    except ImportError as error:
        return None, f"the worker's interpreter {sys.executable} lacks what they take: {error}"
    return ToolKinematics(robot.urdf(), robot.joints, robot.tool_frame), ""


if __name__ == "__main__":
    main()
