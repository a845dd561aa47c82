"""From the core's dialect of Python to LLVM's language: one module for all its functions.

The source is read as a syntax tree: `routine` reads what a function declares, `statements`,
`expressions` and `operators` say what its body means, each by way of the next. Whatever is not
in the dialect is a `DialectError` with its file and line. docs/core-dialect.md is for people.

A function with a parameter of type `Any` has no code of its own: its expressions are put
where it is called, with the types that they have there (`trapgate.decision.rules`).
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from trapgate.compiler.dialect import APART, INLINED
from trapgate.compiler.kinds import (
    BOOL,
    BOOLEAN,
    BOUND,
    CELLS,
    INT,
    NOTHING,
    RETURN_ADDRESS,
    VOID,
    CType,
    Value,
    composed,
    received,
    returned,
)
from trapgate.compiler.operators import Operators
from trapgate.compiler.routine import Routine
from trapgate.compiler.statements import Statements
from trapgate.compiler.target import IS_LINUX_X86_64
from trapgate.compiler.text import Code

_ATTRIBUTES = """
attributes #0 = { nounwind uwtable "no-builtins" }
attributes #1 = { nounwind uwtable noreturn noinline cold }
attributes #2 = { nounwind uwtable "no-builtins" noinline }
attributes #3 = { nounwind uwtable "no-builtins" alwaysinline }
declare void @llvm.trap()
declare ptr @llvm.returnaddress(i32)
"""
"""No calls of the C library's memset() and memcpy() for loops like theirs; and unwind tables."""

_TELL = """call i64 asm sideeffect "syscall",
  "={rax},{rax},{rdi},{rsi},{rdx},~{rcx},~{r11},~{memory}"(i64 1, i64 2, ptr %words, i64 %length)
"""
"""write(2, words, length), asked of Linux itself: machine code has no address of the C library."""

_STOP = f"""
define internal void @stop(ptr %words, i64 %length) #1 {{
{_TELL if IS_LINUX_X86_64 else ""}
call void @llvm.trap()
unreachable
}}
"""


_SMALL = 8
"""Instructions of a function that is put into its callers, however many they are."""

_CONVENTION = "swiftcc"
"""How functions of the core call each other: four integers come back in registers, as a page
walk's do, where C and LLVM's "fastcc" stop at three and go through memory."""


class Module:
    """One LLVM module: the functions asked for, and all that they call."""

    def __init__(self, is_dialect: Callable[[object], bool], *, checked: bool = False) -> None:
        self.is_dialect = is_dialect
        self.checked = checked
        self._texts: list[str] = []
        self._arrays: dict[int, tuple[str, Any]] = {}
        self._asked: dict[str, Routine] = {}
        self._calls: Counter[str] = Counter()

    def text(self) -> str:
        """The module in LLVM's language; all functions that were asked for are there."""
        bodies: list[tuple[Routine, Code]] = []
        while len(bodies) < len(self._asked):
            new = list(self._asked.values())[len(bodies) :]
            bodies += [(wanted, self._body(wanted)) for wanted in new]
        # Which of them are called from one place only is known now.
        for wanted, body in bodies:
            self._define(wanted, body)
        return "\n".join([*self._texts, *([_STOP] if self.checked else []), _ATTRIBUTES])

    def ask(self, wanted: Routine) -> str:
        """The symbol of a function that this module is to have."""
        self._asked.setdefault(wanted.symbol, wanted)
        return f'@"{wanted.symbol}"'

    def _body(self, wanted: Routine) -> Code:
        code = Code()
        values, _ = received(wanted.parameters.values())
        arguments = dict(zip(wanted.parameters, values, strict=True))
        Statements(self, code, wanted, arguments).all()
        return code

    def _define(self, wanted: Routine, code: Code) -> None:
        _, parameters = received(wanted.parameters.values())
        head = f"internal {_CONVENTION} {returned(wanted.result)}"
        if wanted.function in APART:
            attributes = "#2"
        elif wanted.function in INLINED or self._calls[wanted.symbol] == 1 or code.size <= _SMALL:
            attributes = "#3"
        else:
            attributes = "#0"
        self.put(code, wanted.symbol, head, parameters, attributes=attributes)

    def for_c(self, wanted: Routine, symbol: str, returns: CType, takes: Sequence[CType]) -> None:
        """Export a function with integer parameters to C, under `symbol`."""
        if len(takes) != len(wanted.parameters):
            raise wanted.error(
                wanted.tree, "the types given to the mark are not as many as its parameters"
            )
        bound = f'@"value of {symbol}"'
        if BOUND in takes:
            self._texts.append(
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
        self.put(code, symbol, returns.llvm, parameters)

    def stub(self, wanted: Routine, symbol: str) -> None:
        """Export a stub to C, under `symbol`."""
        kinds = {*wanted.parameters.values(), wanted.result}
        if not kinds <= {INT, NOTHING}:
            raise wanted.error(wanted.tree, "a stub has parameters of type int, and no result")
        code = Code()
        arguments = {name: Value(f"%a{n}", INT) for n, name in enumerate(wanted.parameters)}
        Statements(self, code, wanted, arguments, is_stub=True).all()
        parameters = ", ".join(f"i64 %a{n}" for n in range(len(arguments)))
        # One that goes on at another stands for the quick way, and needs no frame.
        self.put(code, symbol, "i64", parameters, attributes="#2")

    def put(
        self, code: Code, symbol: str, result: str, parameters: str, *, attributes: str = "#0"
    ) -> None:
        """Add a function with this code."""
        head = f'define {result} @"{symbol}"({parameters}) {attributes} {{'
        self._texts.append(f"{head}\n{code.body()}\n}}")

    def call(self, code: Code, callee: Routine, arguments: Sequence[Value]) -> Value:
        """A call of a function with code of its own."""
        self._calls[callee.symbol] += 1
        operands = (one for value in arguments for one in value.operands)
        given = ", ".join(f"{value.kind.llvm} {value.text}" for value in operands)
        result = callee.result
        call = f"call {_CONVENTION} {returned(result)} {self.ask(callee)}({given})"
        if result is NOTHING:
            code.put(call)
            return Value("", NOTHING)
        whole = code.let(call, result)
        if not result.parts:
            return whole
        parts = (
            code.let(f"extractvalue {returned(result)} {whole.text}, {n}", kind)
            for n, kind in enumerate(result.operands)
        )
        return composed(result, parts)

    def stop(self, code: Code, words: str) -> None:
        """In a checked build: say what is wrong on standard error, and end the process."""
        line = f"trapgate: checked build: {words}\n"
        code.put(f"call void @stop(ptr {self.string(line)}, i64 {len(line.encode())})")
        code.end("unreachable")

    def string(self, words: str) -> str:
        """A constant string of C; its address."""
        name = f"@string{len(self._texts)}"
        data = "".join(f"\\{byte:02x}" for byte in (*words.encode(), 0))
        shape = f"[{len(words.encode()) + 1} x i8]"
        self._texts.append(f'{name} = private unnamed_addr constant {shape} c"{data}"')
        return name

    def array(self, code: Code, constant: Any) -> Value:
        """A constant array of a Python module."""
        if id(constant) not in self._arrays:
            name = f"@array{len(self._arrays)}"
            numbers = ", ".join(f"i64 {number}" for number in constant.tolist())
            shape = f"[{len(constant)} x i64]"
            self._texts.append(f"{name} = private unnamed_addr constant {shape} [{numbers}]")
            self._arrays[id(constant)] = name, constant
        name, _ = self._arrays[id(constant)]
        return code.array(CELLS, name, str(len(constant)))
