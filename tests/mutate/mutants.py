"""Mutants of a module: its source with one small fault."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator
from typing import Any

OPPOSITES: dict[type[Any], tuple[type[Any], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Div,),
    ast.Div: (ast.Mult,),
    ast.FloorDiv: (ast.Mod,),
    ast.Mod: (ast.FloorDiv,),
    ast.Pow: (ast.Mult,),
    ast.BitAnd: (ast.BitOr,),
    ast.BitOr: (ast.BitAnd,),
    ast.BitXor: (ast.BitOr,),
    ast.LShift: (ast.RShift,),
    ast.RShift: (ast.LShift,),
    ast.And: (ast.Or,),
    ast.Or: (ast.And,),
}
PARTNERS = ("min max", "minimum maximum", "argmin argmax", "any all", "floor ceil", "mean sum")
SWAPS = {a: b for pair in map(str.split, PARTNERS) for a, b in (pair, pair[::-1])}
LOGGING = {"debug", "info", "set_description"}


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A change of one place of a source."""

    line: int
    function: str  # ``Class.method`` or ``function``, the outermost; empty outside of all
    before: str
    after: str
    span: tuple[int, int]  # in bytes

    def applied(self, source: bytes) -> bytes:
        """The source with the change."""
        start, end = self.span
        return source[:start] + self.after.encode() + source[end:]


def changed(node: ast.expr) -> Iterator[ast.expr]:
    """Expressions to put in the place of another one, whose parts stay."""
    match node:
        case ast.Compare(left, operators, comparators):
            for index, operator in enumerate(operators):
                for other in OPPOSITES[type(operator)]:
                    others = [*operators[:index], other(), *operators[index + 1 :]]
                    yield ast.Compare(left, others, comparators)
        case ast.BinOp(left, operator, right):
            for other in OPPOSITES.get(type(operator), ()):
                yield ast.BinOp(left, other(), right)
        case ast.BoolOp(operator, values):
            yield ast.BoolOp(OPPOSITES[type(operator)][0](), values)
        case ast.UnaryOp(_, operand):
            yield operand
        case ast.Constant(bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(int(value)):
            yield ast.Constant(value + 1)
            if value > 0:
                yield ast.Constant(value - 1)
        case ast.Constant(float(value)):
            yield ast.Constant(value + 1)
        case ast.Call(ast.Name(name), arguments, keywords) if name in SWAPS:
            yield ast.Call(ast.Name(SWAPS[name]), arguments, keywords)
        case ast.Call(ast.Attribute(value, name), arguments, keywords) if name in SWAPS:
            yield ast.Call(ast.Attribute(value, SWAPS[name]), arguments, keywords)
        case ast.IfExp(test, body, other):
            yield ast.IfExp(ast.UnaryOp(ast.Not(), test), body, other)


def replaced(node: ast.stmt) -> Iterator[ast.stmt]:
    """Statements to put in the place of another one."""
    match node:
        case ast.Break():
            yield ast.Continue()
        case ast.Continue():
            yield ast.Break()
        case ast.AugAssign(target, operator, value):
            for other in OPPOSITES.get(type(operator), ()):
                yield ast.AugAssign(target, other(), value)
            yield ast.Pass()
        case ast.Assign([ast.Attribute() | ast.Subscript()]) | ast.Raise() | ast.Delete():
            yield ast.Pass()
        case ast.Expr(ast.Call() | ast.Yield() | ast.YieldFrom()):
            yield ast.Pass()
        case ast.Return(value) if value and not (
            isinstance(value, ast.Constant) and value.value is None
        ):
            yield ast.Return(ast.Constant(None))


def negated(node: ast.stmt) -> Iterator[tuple[ast.expr, ast.expr]]:
    """The condition of a statement, and its opposite, where no other mutant is that."""
    match node:
        case ast.If(test) if not isinstance(test, ast.Compare | ast.UnaryOp):
            yield test, ast.UnaryOp(ast.Not(), test)


def children(node: ast.AST) -> Iterator[ast.AST]:
    """Parts of a node that run, and whose faults a test should see.

    Annotations, docstrings, texts, what is logged and what is only read by type checkers are left
    out; so are the insides of f-strings, whose places Python 3.11 does not know.
    """
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "type_comment"):
            continue
        for child in value if isinstance(value, list) else [value]:
            match child:
                case ast.JoinedStr() | ast.Expr(ast.Constant()):
                    pass
                case ast.Expr(ast.Call(ast.Attribute(_, name))) if name in LOGGING:
                    pass
                case ast.If(ast.Name("TYPE_CHECKING")):
                    pass
                case ast.AST():
                    yield child


def mutants(source: bytes) -> list[Mutant]:
    """All mutants of a module, in the order of its lines."""
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found: list[Mutant] = []

    def add(old: ast.expr | ast.stmt, new: ast.AST, function: str) -> None:
        end_line, end_column = old.end_lineno or 0, old.end_col_offset or 0
        span = starts[old.lineno - 1] + old.col_offset, starts[end_line - 1] + end_column
        before, after = source[slice(*span)].decode(), ast.unparse(ast.fix_missing_locations(new))
        if isinstance(old, ast.expr):
            closed = isinstance(new, ast.Constant | ast.Call | ast.Name | ast.Attribute)
            after = after if closed else f"({after})"
        found.append(Mutant(old.lineno, function, before, after, span))

    def visit(node: ast.AST, scope: tuple[str, ...], inside: bool) -> None:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not inside:
            scope = (*scope, node.name)
            inside = not isinstance(node, ast.ClassDef)
        function = ".".join(scope) if inside else ""
        if isinstance(node, ast.expr):
            for new in changed(node):
                add(node, new, function)
        if isinstance(node, ast.stmt):
            for statement in replaced(node):
                add(node, statement, function)
            for old, new in negated(node):
                add(old, new, function)
        for child in children(node):
            visit(child, scope, inside)

    visit(ast.parse(source), (), False)
    return found
