"""Convex meshes: files in every form that they come in, and what is said of a wrong one."""

import struct

import numpy as np
import pytest

from vla_contract.errors import ConfigError
from vla_safety.core.meshes import hull_of, read_mesh

CORNERS = np.array([(x, y, z) for x in (0, 1) for y in (0, 2) for z in (0, 4)], dtype=float)
SQUARES = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
TRIANGLES = [(face[0], face[k], face[k + 1]) for face in SQUARES for k in (1, 2)]


def obj(corners=CORNERS, faces=SQUARES, first=1, more=""):
    lines = [f"v {x} {y} {z}" for x, y, z in corners]
    return "\n".join([*lines, *("f " + " ".join(f"{i + first}{more}" for i in face) for face in faces)]).encode()


def text_stl(corners=CORNERS):
    facets = ["\n".join(f"  vertex {x} {y} {z}" for x, y, z in corners[list(face)]) for face in TRIANGLES]
    return ("solid part\n" + "\n".join(f"facet\nouter loop\n{f}\nendloop\nendfacet" for f in facets)).encode()


def binary_stl(corners=CORNERS, header=b"solid".ljust(80, b"\0")):
    rows = b"".join(struct.pack("<12fH", 0, 0, 0, *corners[list(face)].ravel(), 9) for face in TRIANGLES)
    return header + struct.pack("<I", len(TRIANGLES)) + rows


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.obj", obj()),
        ("a.OBJ", obj(more="/3/4")),
        ("a.obj", obj(first=-8)),
        ("a.obj", obj(faces=TRIANGLES) + b"\n# a comment\nvn 0 0 1\n"),
        ("a.stl", text_stl()),
        ("a.STL", b"  \n" + text_stl()),
        ("a.stl", binary_stl()),
        ("a.stl", binary_stl(header=b"\0" * 80)),
    ],
)
def test_the_corners_of_a_box_are_read_from_every_form_of_file(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    corners = read_mesh(path, 0.5)
    assert sorted(map(tuple, corners.tolist())) == sorted(map(tuple, CORNERS.tolist()))
    assert corners.dtype == np.float64


def test_the_planes_of_a_hull_touch_it_and_hold_all_of_it():
    hull = hull_of(np.concatenate([CORNERS, [(0.5, 1.0, 2.0)]]))
    low, high = hull.extents()
    assert low.tolist() == [0, 0, 0] and high.tolist() == [1, 2, 4] and len(hull.vertices) == 8
    assert {tuple(np.append(n, d).tolist()) for n, d in zip(hull.normals, hull.offsets, strict=True)} == {
        (1, 0, 0, 1), (-1, 0, 0, 0), (0, 1, 0, 2), (0, -1, 0, 0), (0, 0, 1, 4), (0, 0, -1, 0)
    }  # fmt: skip


PLATE = CORNERS * (1, 1, 1.25e-7)
FLAT = CORNERS * (1, 1, 0)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (CORNERS[:3], "3 points hold no volume; give at least four that do not lie in one plane"),
        (CORNERS * (1, np.nan, 1), "8 points hold no volume; give at least four that do not lie in one plane"),
        (FLAT, "8 points hold no volume; they lie in one plane or on one line"),
        (PLATE, "the mesh is 5e-07 m thick; give it a volume"),
    ],
)
def test_points_without_a_volume_are_refused(points, message):
    with pytest.raises(ValueError, match="^" + message + "$"):
        hull_of(points)


def test_a_plate_may_be_as_thin_as_a_hair():
    assert len(hull_of(CORNERS * (1, 1, 1e-6)).vertices) == 8


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.obj", None, "mesh '{}' cannot be read: No such file or directory"),
        ("a.ply", b"ply", "mesh '{}' has the ending '.ply'; known: .stl, .obj"),
        ("a.stl", b"nonsense", "mesh '{}' is malformed: 8 bytes are neither a binary nor a text STL; "
         "export it again as triangles"),
        ("a.stl", b"solid", "mesh '{}' is malformed: 0 triangles, not all of finite numbers; "
         "export it again as triangles"),
        ("a.stl", text_stl(CORNERS * (1, 1, np.nan)), "mesh '{}' is malformed: 12 triangles, not all of finite "
         "numbers; export it again as triangles"),
        ("a.obj", obj(faces=[]), "mesh '{}' is malformed: it has no faces; export it again as triangles"),
        ("a.obj", obj(faces=[(0, 1)]), "mesh '{}' is malformed: line 'f 1 2' names no face; "
         "export it again as triangles"),
        ("a.obj", obj(faces=[(0, 1, -10)]), "mesh '{}' is malformed: line 'f 1 2 -9' names no face; "
         "export it again as triangles"),
        ("a.obj", obj(CORNERS * (1, 1, 0)), "mesh '{}': 4 points hold no volume; they lie in one plane or on one line"),
    ],
)  # fmt: skip
def test_i07_a_wrong_file_is_refused_with_what_is_wrong(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as error:
        read_mesh(path, 1.0)
    assert str(error.value) == message.format(path)


@pytest.mark.parametrize(("scale", "convex"), [(0.001, True), (1.0, False)])
def test_a_dent_counts_as_deep_as_it_is_in_metres(tmp_path, scale, convex):
    """A pyramid into the top, whose faces have their middles half a unit deep."""
    dent = np.concatenate([CORNERS, [(0.5, 1.0, 2.5)]])
    faces = [*(f for f in SQUARES if f != (1, 5, 7, 3)), (1, 5, 8), (5, 7, 8), (7, 3, 8), (3, 1, 8)]
    path = tmp_path / "dent.obj"
    path.write_bytes(obj(dent, faces))
    if convex:
        assert len(read_mesh(path, scale)) == 8
        return
    with pytest.raises(ConfigError) as error:
        read_mesh(path, scale)
    assert str(error.value) == (
        f"mesh '{path}' is not convex: a face lies 0.3333 m inside its hull, allowed are 0.001 m; split it into convex "
        "parts, each a zone of its own"
    )
