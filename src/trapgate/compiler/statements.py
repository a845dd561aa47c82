"""What statements of the dialect do: a function's body, one block after the other."""

import ast
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from trapgate.compiler import raw
from trapgate.compiler.expressions import Expressions
from trapgate.compiler.kinds import INT, KINDS, NOTHING, Value, integer, returned
from trapgate.compiler.text import stores


@dataclass(frozen=True)
class _Loop:
    """Where `continue` and `break` go, and the variables that had a value at each `break`."""

    again: str
    after: str
    left_with: list[set[str]] = field(default_factory=list)


_MOST_ROUNDS = 32
_LONGEST = 600
"""A loop over a range of written numbers is written out as so many rounds, at most, if they have
no more than so many nodes of the syntax tree together: LLVM is not asked to unroll any."""


class Statements(Expressions):
    """The statements of one function."""

    def all(self) -> None:
        """The whole function."""
        self._loops: list[_Loop] = []
        self._result: Value | None = None
        """The slot of a result that is several values: they are put together in one place."""
        self._returning = self.code.name()
        for name in sorted(self.assigned & set(self.constants)):
            value = self.constants.pop(name)
            self.variables[name] = slot = self.code.slot(value.kind)
            self.code.slots += stores(value, slot)
            self.known.add(name)
        self._block(self.source.tree.body)
        if not self.code.ended and self.source.result is not NOTHING:
            raise self.error(
                self.source.tree, "its end may be reached without a result; end it with `return`"
            )
        if self._result is not None:
            self.code.label(self._returning)
            whole, kind = "poison", returned(self.source.result)
            for n, one in enumerate(self.code.load(self._result).operands):
                text = f"insertvalue {kind} {whole}, {one.kind.llvm} {one.text}, {n}"
                whole = self.code.let(text).text
            self.code.end(f"ret {kind} {whole}")
        self.code.end(self._end)

    @property
    def _end(self) -> str:
        """The end without a result."""
        return "ret i64 poison" if self.is_stub else "ret void"

    def _block(self, statements: Sequence[ast.stmt]) -> None:
        for statement in statements:
            self._statement(statement)

    def _statement(self, node: ast.stmt) -> None:
        match node:
            case ast.Expr(ast.Constant(str())) | ast.Pass():
                pass
            case ast.Expr(ast.Call(ast.Name() as function, [target, ast.Tuple(arguments)], [])) if (
                self.meaning(function) is raw.go_on
            ):
                self._go_on(node, target, arguments)
            case ast.Expr(ast.Call() as call):
                self.value(call)
            case ast.Assign(targets, source):
                value = self.value(source)
                for target in targets:
                    self._assign(target, value)
            case ast.AnnAssign(ast.Name() as target, annotation, ast.expr() as source):
                kind = KINDS.get(self.meaning(annotation))
                if kind is None:
                    raise self.error(annotation, "this is no type of the dialect; leave it out")
                self._assign(target, self.coerce(self.value(source), kind, node))
            case ast.AugAssign(target, op, source):
                self._change(target, op, source)
            case ast.Return(result):
                self._return(node, result)
            case ast.If(test, body, otherwise):
                self._if(test, body, otherwise)
            case ast.While(test, body, []):
                self._while(test, body)
            case ast.For(
                ast.Name() as target, ast.Call(ast.Name("range"), bounds, []), body, []
            ) if self.is_builtin("range"):
                self._count(target, bounds, body)
            case ast.For(ast.Name() as target, ast.Tuple([_, *_] as elements), body, []):
                self._each(target, [self.value(element) for element in elements], body)
            case ast.Break() if self._loops:
                self._loops[-1].left_with.append(set(self.known))
                self.code.jump(self._loops[-1].after)
            case ast.Continue() if self._loops:
                self.code.jump(self._loops[-1].again)
            case _:
                raise self.error(
                    node,
                    f"`{ast.unparse(node).splitlines()[0][:60]}` is no statement of the dialect; "
                    "it has assignments, calls, `if`, `while`, `for` over range() or a written "
                    "tuple (without `else`), `break`, `continue`, `return` and `pass`",
                )

    def _return(self, node: ast.Return, result: ast.expr | None) -> None:
        kind = self.source.result
        if result is None or (kind is NOTHING and isinstance(result, ast.Constant)):
            if kind is not NOTHING or (result is not None and result.value is not None):
                raise self.error(node, f"a result of type {kind.name} is to be returned")
            self.code.end(self._end)
            return
        value = self.coerce(self.value(result), kind, node)
        if kind.parts:
            if self._result is None:
                self._result = self.code.slot(kind)
            self.code.store(value, self._result)
            self.code.jump(self._returning)
        else:
            self.code.end(self._end if kind is NOTHING else f"ret {kind.llvm} {value.text}")

    def _go_on(self, node: ast.stmt, target: ast.expr, arguments: Sequence[ast.expr]) -> None:
        self.demand_stub(node)
        words = [self.coerce(self.value(argument), INT, argument).text for argument in arguments]
        if len(words) != len(self.source.parameters):
            raise self.error(node, "a stub goes on with as many arguments as it has itself")
        known = isinstance(target, ast.Name) and not self._is_variable(target.id)
        stub = self.meaning(target) if known else None
        if isinstance(stub, raw.Continuation):
            place = f'@"{stub.symbol}"'
        else:
            place = self.code.pointer(self.coerce(self.value(target), INT, target).text)
        given = ", ".join(f"i64 {word}" for word in words)
        result = self.code.let(f"musttail call i64 {place}({given})").text
        self.code.end(f"ret i64 {result}")

    # Assignments.

    def _assign(self, target: ast.expr, value: Value) -> None:
        match target:
            case ast.Name("_"):
                pass
            case ast.Name(name):
                if value.kind is NOTHING:
                    raise self.error(target, f"there is no value for {name}")
                if name not in self.variables:
                    self.variables[name] = self.code.slot(value.kind)
                slot = self.variables[name]
                if value.kind != slot.kind and slot.kind is not INT:
                    raise self.error(
                        target,
                        f"{name} was a {slot.kind.name} and gets a {value.kind.name}; "
                        "take another name, or begin with `int(...)`",
                    )
                self.code.store(self.coerce(value, slot.kind, target), slot)
                self.known.add(name)
            case ast.Tuple(elements):
                if len(elements) != len(value.kind.elements):
                    raise self.error(target, f"{len(elements)} names for a {value.kind.name}")
                for element, part in zip(elements, value.parts, strict=True):
                    self._assign(element, part)
            case ast.Subscript(array, index):
                self.code.store(self.coerce(value, INT, target), self._place(array, index, target))
            case _:
                raise self.error(
                    target,
                    f"nothing can be assigned to `{ast.unparse(target)}`; "
                    "a target is a name, a cell or a tuple of them",
                )

    def _place(self, array: ast.expr, index: ast.expr, node: ast.expr) -> Value:
        if isinstance(index, ast.Slice):
            raise self.error(node, "a slice gets no value; write a loop over its cells")
        return self.cell(self.value(array), self.expect(INT, index), node)

    def _change(self, target: ast.expr, op: ast.operator, source: ast.expr) -> None:
        """`target op= source`."""
        if isinstance(target, ast.Subscript):
            place = self._place(target.value, target.slice, target)
        elif isinstance(target, ast.Name) and target.id in self.known:
            place = self.variables[target.id]
        else:
            raise self.error(
                target, f"`{ast.unparse(target)}` may have no value to change; give it one before"
            )
        value = self.combine(op, self.code.load(place), self.value(source), target)
        self.code.store(self.coerce(value, place.kind, target), place)

    # Blocks, and which variables have a value after them.

    @contextmanager
    def _maybe(self) -> Iterator[None]:
        """What gets a value in here may have none afterwards."""
        before = set(self.known)
        yield
        self.known = before

    def _if(self, test: ast.expr, body: Sequence[ast.stmt], otherwise: Sequence[ast.stmt]) -> None:
        ends: list[set[str]] = []

        def way(statements: Sequence[ast.stmt]) -> Callable[[], None]:
            def put() -> None:
                with self._maybe():
                    self._block(statements)
                    # A way that leaves the block has nothing to say about what comes after.
                    if not self.code.ended:
                        ends.append(self.known)

            return put

        self.choose(test, way(body), way(otherwise))
        if ends:
            self.known = set.intersection(*ends)

    @contextmanager
    def _looping(self, again: str, after: str) -> Iterator[_Loop]:
        """Let `continue` and `break` go there."""
        self._loops.append(_Loop(again, after))
        yield self._loops[-1]
        self._loops.pop()

    def _while(self, test: ast.expr, body: Sequence[ast.stmt]) -> None:
        again, inside, after = (self.code.name() for _ in range(3))
        self.code.label(again)
        self.branch_on(test, inside, after)
        ends_by_break_alone = not self.code.is_wanted(after)
        self.code.label(inside)
        with self._maybe(), self._looping(again, after) as loop:
            self._block(body)
        self.code.jump(again)
        self.code.label(after)
        if ends_by_break_alone and loop.left_with:
            self.known = set.intersection(*loop.left_with)

    def _count(self, target: ast.Name, bounds: list[ast.expr], body: Sequence[ast.stmt]) -> None:
        """`for` over a range from 0 or a given number, in steps of 1."""
        values = [self.coerce(self.value(bound), INT, bound) for bound in bounds]
        if len(values) not in (1, 2):
            raise self.error(target, "a range has one bound or two; count steps with `while`")
        first, last = (value.number for value in (integer(0), *values)[-2:])
        if first is not None and last is not None and self._is_short(last - first, body):
            self._each(target, [integer(number) for number in range(first, last)], body)
            return
        counter = self.code.slot(INT)
        self.code.store(values[0] if len(values) == 2 else integer(0), counter)
        again, inside, onward, after = (self.code.name() for _ in range(4))
        self.code.label(again)
        now = self.code.load(counter)
        self.code.branch(self.compared("slt", now, values[-1], target), inside, after)
        self.code.label(inside)
        with self._maybe(), self._looping(onward, after):
            self._assign(target, now)
            self._block(body)
        self.code.label(onward)
        step = self.combine(ast.Add(), self.code.load(counter), integer(1), target)
        self.code.store(step, counter)
        self.code.jump(again)
        self.code.label(after)

    @staticmethod
    def _is_short(rounds: int, body: Sequence[ast.stmt]) -> bool:
        """Whether a loop is to be written out."""
        if not 0 < rounds <= _MOST_ROUNDS:
            return False
        return rounds * sum(1 for statement in body for _ in ast.walk(statement)) <= _LONGEST

    def _each(self, target: ast.Name, values: Sequence[Value], body: Sequence[ast.stmt]) -> None:
        """`for` over some values: its body once for each of them."""
        after = self.code.name()
        for value in values:
            onward = self.code.name()
            with self._maybe(), self._looping(onward, after):
                self._assign(target, value)
                self._block(body)
            self.code.label(onward)
        self.code.label(after)
        # There is at least one element.
        self.known.add(target.id)
