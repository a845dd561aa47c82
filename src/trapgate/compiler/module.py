"""From the core's dialect of Python to LLVM's language: one module for all its functions.

The source is read as a syntax tree: `routine` reads what a function declares, `statements`,
`expressions` and `operators` say what its body means, each by way of the next. Whatever is not
in the dialect is a `DialectError` with its file and line. docs/core-dialect.md is for people.

A function with a parameter of type `Any` has no code of its own: its expressions are put
where it is called, with the types that they have there (`trapgate.decision.rules`).
"""

from collections.abc import Callable, Collection, Sequence

from trapgate.compiler.definitions import CONVENTION, Definitions
from trapgate.compiler.dialect import INLINED
from trapgate.compiler.kinds import (
    BOOL,
    BOOLEAN,
    BOUND,
    INT,
    NOTHING,
    RETURN_ADDRESS,
    VOID,
    CType,
    Value,
    received,
    returned,
)
from trapgate.compiler.operators import Operators
from trapgate.compiler.routine import Routine
from trapgate.compiler.statements import Statements
from trapgate.compiler.text import Code

_SMALL = 8
"""Instructions of a function that is put into its callers, however many they are."""


class Module(Definitions):
    """One LLVM module: the functions asked for, and all that they call.

    `hot` names the functions that are compiled well, the others being compiled quickly; without it
    all are. With `each_alone` none is put into its callers.
    """

    def __init__(
        self,
        is_dialect: Callable[[object], bool],
        *,
        checked: bool = False,
        hot: Collection[str] | None = None,
        each_alone: bool = False,
    ) -> None:
        super().__init__(is_dialect, checked=checked)
        self._hot = hot
        self._each_alone = each_alone

    def text(self) -> str:
        """The module in LLVM's language; all functions that were asked for are there."""
        bodies: list[tuple[Routine, Code]] = []
        while len(bodies) < len(self.asked):
            new = list(self.asked.values())[len(bodies) :]
            bodies += [(wanted, self._body(wanted)) for wanted in new]
        # Where each is called is known only now.
        around = {id(body): wanted for wanted, body in bodies}
        for wanted, body in bodies:
            callers = [around.get(id(code)) for code in self.callers.get(wanted.symbol, ())]
            self._define(wanted, body, callers)
        return self.whole()

    def _body(self, wanted: Routine) -> Code:
        code = Code()
        values, _ = received(wanted.parameters.values())
        arguments = dict(zip(wanted.parameters, values, strict=True))
        Statements(self, code, wanted, arguments).all()
        return code

    def _is_hot(self, wanted: Routine) -> bool:
        return self._hot is None or wanted.symbol in self._hot

    def attributes(self, wanted: Routine) -> str:
        """How a function is compiled that stands apart: well, or quickly."""
        return "#0" if self._is_hot(wanted) else "#2"

    def _define(self, wanted: Routine, code: Code, callers: Sequence[Routine | None]) -> None:
        _, parameters = received(wanted.parameters.values())
        head = f"internal {CONVENTION} {returned(wanted.result)}"
        goes = wanted.function in INLINED or self._belongs(wanted, callers) or code.size <= _SMALL
        attributes = "#3" if goes and not self._each_alone else self.attributes(wanted)
        self.put(code, wanted.symbol, head, parameters, attributes=attributes)

    def _belongs(self, wanted: Routine, callers: Sequence[Routine | None]) -> bool:
        """Whether a function is called at one place only, which is as hot as itself."""
        if len(callers) != 1:
            return False
        caller = callers[0]
        return caller is None or self._is_hot(caller) == self._is_hot(wanted)

    def for_c(self, wanted: Routine, symbol: str, returns: CType, takes: Sequence[CType]) -> None:
        """Export a function with integer parameters to C, under `symbol`."""
        if len(takes) != len(wanted.parameters):
            raise wanted.error(
                wanted.tree, "the types given to the mark are not as many as its parameters"
            )
        bound = f'@"value of {symbol}"'
        if BOUND in takes:
            self.define(
                f'{bound} = internal global i64 0\ndefine void @"bind {symbol}"(i64 %a0) #0 {{\n'
                f"store i64 %a0, ptr {bound}\nret void\n}}"
            )
        code = Code()
        operators = Operators(self, code, wanted)
        arguments = []
        for n, (ctype, kind) in enumerate(zip(takes, wanted.parameters.values(), strict=True)):
            value = Value(f"%a{n}", INT)
            if ctype is BOUND:
                value = code.let(f"load i64, ptr {bound}")
            elif ctype is RETURN_ADDRESS:
                where = code.let("call ptr @llvm.returnaddress(i32 0)").text
                value = code.let(f"ptrtoint ptr {where} to i64")
            elif ctype is BOOLEAN:
                value = code.let(f"icmp ne i8 %a{n}, 0", BOOL)
            elif ctype.llvm != "i64":
                extend = "sext" if ctype.signed else "zext"
                value = code.let(f"{extend} {ctype.llvm} %a{n} to i64")
            arguments.append(operators.coerce(value, kind, wanted.tree))
        result = self.call(code, wanted, arguments)
        if returns is VOID:
            code.end("ret void")
        else:
            widened = operators.coerce(result, INT, wanted.tree)
            if returns.llvm != "i64":
                widened = code.let(f"trunc i64 {widened.text} to {returns.llvm}")
            code.end(f"ret {returns.llvm} {widened.text}")
        from_c = [one for one in enumerate(takes) if one[1] not in (BOUND, RETURN_ADDRESS)]
        parameters = ", ".join(f"{ctype.llvm} %a{n}" for n, ctype in from_c)
        self.put(code, symbol, returns.llvm, parameters, attributes=self.attributes(wanted))

    def stub(self, wanted: Routine, symbol: str) -> None:
        """Export a stub to C, under `symbol`."""
        kinds = {*wanted.parameters.values(), wanted.result}
        if not kinds <= {INT, NOTHING}:
            raise wanted.error(wanted.tree, "a stub has parameters of type int, and no result")
        code = Code()
        arguments = {name: Value(f"%a{n}", INT) for n, name in enumerate(wanted.parameters)}
        Statements(self, code, wanted, arguments, is_stub=True).all()
        parameters = ", ".join(f"i64 %a{n}" for n in range(len(arguments)))
        self.put(code, symbol, "i64", parameters, attributes=self.attributes(wanted))
