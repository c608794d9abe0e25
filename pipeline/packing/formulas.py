"""Formulas: fields of a layout that are computed from those in its file names, for schemes that only number files."""

import ast
import math
from collections.abc import Callable, Mapping

from pipeline.errors import InputError

FUNCTIONS: dict[str, Callable[..., float]] = {"ceil": math.ceil, "floor": math.floor, "min": min, "max": max}
LARGEST = 10**9 - 1  # of a number in a file name, and so of a field
_OPERATORS = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.USub, ast.UAdd)  # no powers: they explode


class Formula:
    """Arithmetic on named fields, such as `ceil(n / 4000)`: + - * / // % and `FUNCTIONS`, nothing else."""

    def __init__(self, text: str, constants: Mapping[str, int] | None = None) -> None:
        """`constants` are names with a fixed value. Raises `InputError` for anything that is not such arithmetic."""
        self.text = text
        try:
            tree = ast.parse(text.strip(), mode="eval")
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise InputError(
                f"formula {text!r} cannot be read: write arithmetic on fields, as ceil(n / 4000)"
            ) from error
        called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        for node in ast.walk(tree):
            if not _allowed(node):
                what = ast.unparse(node) if isinstance(node, ast.expr) else type(node).__name__
                functions = ", ".join(FUNCTIONS)
                raise InputError(f"formula {text!r}: {what} is not allowed; expected + - * / // % and {functions}")
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and id(node) not in called}
        self.fields = frozenset(names - set(constants or ()))
        """The names that a file name has to give."""
        self._constants = {**FUNCTIONS, **(constants or {}), "__builtins__": {}}
        self._code = compile(tree, "<formula>", "eval")  # safe to run: every node of it was allowed above

    def __call__(self, fields: Mapping[str, int]) -> int:
        """The value for some fields; raise `ValueError` unless it is a whole number from 0 to `LARGEST`."""
        try:
            value = eval(self._code, self._constants, fields)
        except (ArithmeticError, TypeError) as error:
            raise ValueError(f"{self.text} has no value ({error})") from error
        if value != value // 1 or not 0 <= value <= LARGEST:
            raise ValueError(f"{self.text} is {value}")
        return int(value)

    def __repr__(self) -> str:
        return f"Formula({self.text!r}, { ({name: v for name, v in self._constants.items() if isinstance(v, int)}) })"


def _allowed(node: ast.AST) -> bool:
    match node:
        case ast.Constant(value=value):
            return isinstance(value, int | float) and abs(value) <= LARGEST
        case ast.Call(func=ast.Name(id=name), keywords=[]):
            return name in FUNCTIONS
        case ast.BinOp() | ast.UnaryOp() | ast.Name() | ast.Expression() | ast.expr_context():
            return True
        case _:
            return isinstance(node, _OPERATORS)
