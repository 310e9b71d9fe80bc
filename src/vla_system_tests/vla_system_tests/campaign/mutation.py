"""Small changes to source code, one at a time: what a test suite must notice. The operators are mutmut's."""

from dataclasses import dataclass
from pathlib import Path

import libcst as cst
from libcst.metadata import MetadataWrapper, PositionProvider
from mutmut.mutation.mutators import mutation_operators

# Nothing that is executed depends on these.
_SKIPPED = (
    cst.Annotation, cst.Import, cst.ImportFrom, cst.Assert, cst.FormattedString, cst.Decorator, cst.Parameters
)  # fmt: skip


_UNSEEN = ("strict", "out")


@dataclass(frozen=True)
class Mutant:
    """One change.

    Attributes:
        module: name of the file without its ending; line: where the change is; function: that it is in.
        before, after: the changed lines; source: the whole file.
    """

    module: str
    line: int
    function: str
    before: str
    after: str
    source: str

    @property
    def key(self) -> str:
        """What a list of known mutants calls it; it does not change when lines are added elsewhere."""
        return f"{self.module}.{self.function}: {self.before} -> {self.after}"


class _Sites(cst.CSTVisitor):
    """Nodes and their replacements, in order of the source."""

    METADATA_DEPENDENCIES = (PositionProvider,)

    def __init__(self, everywhere: bool) -> None:
        self.found: list[tuple[cst.CSTNode, cst.CSTNode, int, str]] = []
        self._functions: list[str] = []
        self._inside = int(everywhere)  # how many functions deep: like mutmut, nothing is changed outside of them

    def on_visit(self, node: cst.CSTNode) -> bool:
        if isinstance(node, _SKIPPED) or _is_docstring(node) or _is_declaration(node):
            return False
        if isinstance(node, cst.Arg) and node.keyword is not None and node.keyword.value in _UNSEEN:
            return False
        if isinstance(node, cst.FunctionDef | cst.ClassDef):
            self._functions.append(node.name.value)
            self._inside += isinstance(node, cst.FunctionDef)
        line = self.get_metadata(PositionProvider, node).start.line if not isinstance(node, cst.Module) else 0
        for kind, operator in mutation_operators if self._inside else ():
            if isinstance(node, kind):
                for number, changed in enumerate(operator(node)):
                    if isinstance(node, cst.Call) and isinstance(changed, cst.Call) and _silent(node, changed):
                        continue
                    if operator.__name__ == "operator_string" and number:
                        break  # the other spellings of a string add nothing
                    self.found.append((node, changed, line, ".".join(self._functions) or "module"))
        return True

    def on_leave(self, original_node: cst.CSTNode) -> None:
        skipped = isinstance(original_node, _SKIPPED) or _is_declaration(original_node)
        if isinstance(original_node, cst.FunctionDef | cst.ClassDef) and not skipped:
            self._functions.pop()
            self._inside -= isinstance(original_node, cst.FunctionDef)


class Source:
    """A file and the places where it can be changed. Programs are made one by one, when they are asked for.

    Args:
        everywhere: also outside of functions, for a module that is a table.
    """

    def __init__(self, path: Path, everywhere: bool = False):
        self._path = path
        self._text = path.read_text()
        self._wrapper = MetadataWrapper(cst.parse_module(self._text))
        sites = _Sites(everywhere)
        self._wrapper.visit(sites)
        self._sites = sites.found

    def __len__(self) -> int:
        return len(self._sites)

    def mutant(self, k: int) -> Mutant | None:
        """Number `k`; None: the operator made no program of it, or the same one."""
        node, changed, line, function = self._sites[k]
        try:
            source = self._wrapper.module.deep_replace(node, changed).code  # type: ignore[arg-type]
            compile(source, str(self._path), "exec")
        except (cst.CSTValidationError, SyntaxError, TypeError, AttributeError):
            return None
        if source == self._text:
            return None
        before, after = _changed(self._text.splitlines(), source.splitlines())
        return Mutant(self._path.stem, line, function, before, after, source)


def _changed(old: list[str], new: list[str]) -> tuple[str, str]:
    """What differs between two texts that are the same above and below one place."""
    top = next((k for k, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
    tail = 0
    while tail < min(len(old), len(new)) - top and old[-1 - tail] == new[-1 - tail]:
        tail += 1
    parts = [" ".join(line.strip() for line in text[top : len(text) - tail]) for text in (old, new)]
    return parts[0], parts[1]


def _silent(call: cst.Call, changed: cst.Call) -> bool:
    """Whether only arguments differ that no result depends on: zip's check of lengths, and where a result is stored."""
    kept = list(changed.args)
    lost = [arg for arg in call.args if not any(arg is other for other in kept)]
    return bool(lost) and all(arg.keyword is not None and arg.keyword.value in _UNSEEN for arg in lost)


def _is_docstring(node: cst.CSTNode) -> bool:
    return isinstance(node, cst.Expr) and isinstance(node.value, cst.SimpleString | cst.ConcatenatedString)


def _is_declaration(node: cst.CSTNode) -> bool:
    """Also an Enum, whose members are compared by identity: what their values are does not matter."""
    bases = node.bases if isinstance(node, cst.ClassDef) else ()
    return any(isinstance(base.value, cst.Name) and base.value.value in ("Protocol", "Enum") for base in bases)
