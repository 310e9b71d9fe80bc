"""Pictures of the cell, on the CPU if need be: EGL first, OSMesa where there is no EGL."""

import ctypes
import os
from importlib import import_module
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from vla_contract.errors import VlaError

_LIBRARIES = {"egl": ("libEGL.so.1", "libEGL.so"), "osmesa": ("libOSMesa.so.8", "libOSMesa.so.6", "libOSMesa.so")}


class RenderingUnavailable(VlaError):
    """There is no way to draw on this machine. The message says what to install."""


def choose_backend() -> str:
    """`egl` or `osmesa`: what MUJOCO_GL asks for if this machine has it, else the other.

    Raises:
        RenderingUnavailable: when it has neither, or MUJOCO_GL asks for something else.
    """
    wanted = os.environ.get("MUJOCO_GL", "").lower()
    if wanted and wanted not in _LIBRARIES:
        raise RenderingUnavailable(f"MUJOCO_GL is '{wanted}'; the cell draws with 'egl' or 'osmesa': unset it")
    for backend in sorted(_LIBRARIES, key=lambda name: name != wanted):
        if any(_loads(library) for library in _LIBRARIES[backend]):
            return backend
    raise RenderingUnavailable(
        f"no library for off-screen drawing ({', '.join(names[0] for names in _LIBRARIES.values())}); "
        "on Debian or Ubuntu: sudo apt-get install libegl1 libgl1-mesa-dri (or libosmesa6)"
    )


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


class SceneRenderer:
    """Draws cameras of one model. It owns an OpenGL context: make, use and close it in one and the same thread.

    Raises:
        RenderingUnavailable: when no OpenGL context can be made.
    """

    def __init__(self, model: mujoco.MjModel):
        backend = choose_backend()
        self._model = model
        width, height = model.vis.global_.offwidth, model.vis.global_.offheight
        self._largest = (int(width), int(height))
        os.environ["PYOPENGL_PLATFORM"] = backend  # read once, when PyOpenGL is imported
        try:
            self._gl: Any = import_module(f"mujoco.{backend}").GLContext(*self._largest)
            self._gl.make_current()
            self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        except Exception as error:  # PyOpenGL and the drivers raise errors of many kinds
            raise RenderingUnavailable(f"OpenGL by {backend} does not start: {error}; try MUJOCO_GL=osmesa") from error
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._scene = mujoco.MjvScene(model, maxgeom=1000)
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self._scene.flags[flag] = 0
        self._option = mujoco.MjvOption()
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._perturb = mujoco.MjvPerturb()

    def render(self, data: mujoco.MjData, camera: int, width: int, height: int) -> NDArray[np.uint8]:
        """RGB uint8 (height, width, 3) of camera number `camera`; `data` must hold current positions of bodies."""
        if width > self._largest[0] or height > self._largest[1]:
            raise RenderingUnavailable(f"{width}x{height} px is more than {self._largest[0]}x{self._largest[1]} px")
        self._camera.fixedcamid = camera
        mujoco.mjv_updateScene(
            self._model, data, self._option, self._perturb, self._camera, mujoco.mjtCatBit.mjCAT_ALL.value, self._scene
        )
        area = mujoco.MjrRect(0, 0, width, height)
        mujoco.mjr_render(area, self._scene, self._context)
        pixels = np.empty((height, width, 3), dtype=np.uint8)
        mujoco.mjr_readPixels(pixels, None, area, self._context)
        return np.ascontiguousarray(pixels[::-1])  # OpenGL counts rows from below

    def close(self) -> None:
        """Frees the OpenGL context."""
        self._context.free()
        self._gl.free()


def intrinsics(fovy: float, width: int, height: int) -> NDArray[np.float64]:
    """(3, 3) pinhole matrix K [px] of a camera with vertical field of view `fovy` [deg] and square pixels."""
    focal = height / 2 / np.tan(np.radians(fovy) / 2)
    return np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
