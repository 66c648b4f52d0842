"""Small changes to a module's source, each of which some test should notice.

A mutation replaces the text of one node of the syntax tree, so that line numbers stay and the change can be shown. Left
alone are what has no behaviour: annotations, type variables, docstrings, `if TYPE_CHECKING`, `__repr__`, and prose (a
text with spaces that is not the format of a log line): messages are read by people, and tests hold the parts that
matter.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import accumulate


@dataclass(frozen=True)
class Mutation:
    """Replace `before` by `after` at `start:end` (offsets in the UTF-8 source) of a module.

    `key` names the mutation independently of line numbers: scope, text before, text after, and the occurrence among
    equal ones.
    """

    module: str
    scope: str
    line: int
    last_line: int
    start: int
    end: int
    before: str
    after: str
    occurrence: int = 0

    @property
    def key(self) -> str:
        """The name by which the list of equivalent mutations knows it."""
        number = f" #{self.occurrence + 1}" if self.occurrence else ""
        return f"{self.module}:{self.scope}: {_one_line(self.before)} → {_one_line(self.after)}{number}"

    def apply(self, source: bytes) -> bytes:
        """Return the mutated source."""
        return source[: self.start] + self.after.encode() + source[self.end :]


def _one_line(text: str) -> str:
    return " ".join(text.split()) or "nothing"


def mutations(module: str, source: str) -> list[Mutation]:
    """Return all mutations of a module whose result still compiles."""
    finder = _Finder(module, source)
    finder.visit(ast.parse(source))
    seen: Counter[tuple[str, str, str]] = Counter()
    found = []
    for each in sorted(finder.found, key=lambda one: (one.start, one.end, one.after)):
        identity = (each.scope, _one_line(each.before), _one_line(each.after))
        numbered = replace(each, occurrence=seen[identity])
        seen[identity] += 1
        with suppress(SyntaxError):
            compile(numbered.apply(source.encode()), "<mutant>", "exec")
            found.append(numbered)
    return found


_COMPARISONS: dict[type[ast.cmpop], tuple[str, ...]] = {
    ast.Lt: ("<=", ">="),
    ast.LtE: ("<", ">"),
    ast.Gt: (">=", "<="),
    ast.GtE: (">", "<"),
    ast.Eq: ("!=",),
    ast.NotEq: ("==",),
    ast.Is: ("is not",),
    ast.IsNot: ("is",),
    ast.In: ("not in",),
    ast.NotIn: ("in",),
}
_OPERATORS: dict[type[ast.operator], str] = {
    ast.Add: "-",
    ast.Sub: "+",
    ast.Mult: "/",
    ast.Div: "*",
    ast.FloorDiv: "*",
    ast.Mod: "*",
    ast.Pow: "*",
    ast.BitOr: "&",
    ast.BitAnd: "|",
}
_CALLED = {"min": "max", "max": "min", "any": "all", "all": "any"}
# Methods that return something of the same kind, so that leaving them out still runs.
_DROPPABLE = frozenset(
    {"lower", "upper", "strip", "lstrip", "rstrip", "removesuffix", "removeprefix", "casefold"}
)
_LOG_FORMAT = re.compile(r"^[a-z ]+: .*%")
_MIN_ELEMENTS = 2


class _Finder(ast.NodeVisitor):
    def __init__(self, module: str, source: str) -> None:
        self.found: list[Mutation] = []
        self._module = module
        self._bytes = source.encode()
        lines = self._bytes.splitlines(keepends=True)
        self._offsets = list(accumulate(map(len, lines), initial=0))
        self._scope: list[str] = []

    # --- places ---

    def _span(self, node: ast.AST) -> tuple[int, int]:
        start = self._offsets[node.lineno - 1] + node.col_offset  # type: ignore[attr-defined]
        end = self._offsets[node.end_lineno - 1] + node.end_col_offset  # type: ignore[attr-defined]
        return start, end

    def _text(self, node: ast.AST) -> str:
        start, end = self._span(node)
        return self._bytes[start:end].decode()

    def _replace(self, node: ast.AST, after: str) -> None:
        start, end = self._span(node)
        self._replace_span(node, start, end, after)

    def _replace_span(self, node: ast.AST, start: int, end: int, after: str) -> None:
        line, last_line = node.lineno, node.end_lineno  # type: ignore[attr-defined]
        scope = ".".join(self._scope) or "module"
        before = self._bytes[start:end].decode()
        self.found.append(Mutation(self._module, scope, line, last_line, start, end, before, after))

    def _between(self, left: ast.AST, right: ast.AST, after: str) -> None:
        """Replace an operator: all text between two operands but white space and parentheses."""
        start, end = self._span(left)[1], self._span(right)[0]
        match = re.search(rb"[^\s()]+(\s+(not|in))?", self._bytes[start:end])
        if match:
            self._replace_span(left, start + match.start(), start + match.end(), after)

    # --- what is left out ---

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        if node.name == "__repr__":
            return
        self._scope.append(node.name)
        for default in [*node.args.defaults, *(each for each in node.args.kw_defaults if each)]:
            self.visit(default)
        self._body(node.body)
        self._scope.pop()

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._scope.append(node.name)
        if not any(isinstance(base, ast.Name) and base.id == "Protocol" for base in node.bases):
            self._body(node.body)
        self._scope.pop()

    def visit_Module(self, node: ast.Module) -> None:
        self._body(node.body)

    def _body(self, body: list[ast.stmt]) -> None:
        for statement in body:
            # A docstring, or `...`.
            if not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)):
                self.visit(statement)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    # --- statements ---

    def visit_If(self, node: ast.If) -> None:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return
        self._condition(node.test)
        self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self._condition(node.test)
        self.generic_visit(node)

    def _condition(self, test: ast.expr) -> None:
        # Comparisons and `not` have mutations of their own that say the same.
        if isinstance(test, ast.Name | ast.Attribute | ast.Call | ast.BoolOp | ast.NamedExpr):
            self._replace(test, f"(not ({self._text(test)}))")

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Call):
            self._replace(node, "pass")
        self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> None:
        self._replace(node, "pass")
        self.generic_visit(node)

    def visit_Return(self, node: ast.Return) -> None:
        if node.value is not None and not (isinstance(node.value, ast.Constant) and node.value.value is None):
            self._replace(node, "return None")
        self.generic_visit(node)

    def visit_Continue(self, node: ast.Continue) -> None:
        self._replace(node, "break")

    def visit_Break(self, node: ast.Break) -> None:
        self._replace(node, "continue")

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self._replace(node, "pass")
        self.generic_visit(node)

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        if isinstance(node.type, ast.Tuple):
            self._elements(node.type, node.type.elts)
        self._body(node.body)

    # --- expressions ---

    def visit_Compare(self, node: ast.Compare) -> None:
        operands = [node.left, *node.comparators]
        for left, operator, right in zip(operands, node.ops, operands[1:], strict=False):
            for after in _COMPARISONS[type(operator)]:
                self._between(left, right, after)
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        after = "or" if isinstance(node.op, ast.And) else "and"
        for left, right in zip(node.values, node.values[1:], strict=False):
            self._between(left, right, after)
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.Not):
            self._replace(node, f"({self._text(node.operand)})")
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        after = _OPERATORS.get(type(node.op))
        texts = isinstance(node.left, ast.Constant) and isinstance(node.left.value, str)
        if after and not texts:
            self._between(node.left, node.right, after)
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        value = node.value
        if isinstance(value, bool):
            self._replace(node, str(not value))
        elif isinstance(value, int | float):
            self._replace(node, f"({self._text(node)} + 1)")
        elif isinstance(value, str) and (_LOG_FORMAT.match(value) or (value and " " not in value)):
            self._replace(node, repr(value + "XX"))
        elif isinstance(value, bytes) and value:
            self._replace(node, repr(value + b"XX"))

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        for value in node.values:
            if isinstance(value, ast.FormattedValue):
                self.visit(value.value)

    def visit_Call(self, node: ast.Call) -> None:
        if isinstance(node.func, ast.Name) and node.func.id == "TypeVar":
            return
        if isinstance(node.func, ast.Name) and node.func.id in _CALLED:
            self._replace(node.func, _CALLED[node.func.id])
        if isinstance(node.func, ast.Attribute) and node.func.attr in _DROPPABLE:
            self._replace(node, self._text(node.func.value))
        if len(node.keywords) + len(node.args) >= _MIN_ELEMENTS:
            for keyword in node.keywords:
                self._drop(node, keyword)
        # The first argument of cast is a type.
        is_cast = isinstance(node.func, ast.Name) and node.func.id == "cast"
        for child in (node.func, *node.args[is_cast:], *(keyword.value for keyword in node.keywords)):
            self.visit(child)

    def visit_Tuple(self, node: ast.Tuple) -> None:
        if isinstance(node.ctx, ast.Load) and all(isinstance(each, ast.Constant) for each in node.elts):
            self._elements(node, node.elts)
        self.generic_visit(node)

    def visit_List(self, node: ast.List) -> None:
        if isinstance(node.ctx, ast.Load):
            self._elements(node, node.elts)
        self.generic_visit(node)

    def visit_Set(self, node: ast.Set) -> None:
        self._elements(node, node.elts)
        self.generic_visit(node)

    def visit_Dict(self, node: ast.Dict) -> None:
        pairs = list(zip(node.keys, node.values, strict=True))
        # What has no key begins with two asterisks.
        starts = [self._span(key)[0] if key else self._span(value)[0] - 2 for key, value in pairs]
        ends = [*starts[1:], *(self._span(value)[1] for value in node.values[-1:])]
        for (key, value), start, end in zip(pairs, starts, ends, strict=True):
            self._replace_span(key or value, start, end, "")
        self.generic_visit(node)

    def _elements(self, node: ast.expr, elements: list[ast.expr]) -> None:
        """Drop each element of a literal that has several."""
        if len(elements) < _MIN_ELEMENTS:
            return
        for element in elements:
            self._drop(node, element)

    def _drop(self, parent: ast.AST, element: ast.AST) -> None:
        """Take an element out with the comma after it, or the one before it if it is the last."""
        start, end = self._span(element)
        after = re.match(rb"\s*,", self._bytes[end : self._span(parent)[1]])
        if after:
            end += after.end()
        else:
            before = re.search(rb",\s*$", self._bytes[:start])
            start = before.start() if before else start
        self._replace_span(element, start, end, "")
