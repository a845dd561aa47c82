"""What an LLVM module consists of, as functions on their way into it see it.

They ask for what they call and for constants; `module` then has these translated, too.
"""

from collections.abc import Callable, Sequence
from typing import Any

from trapgate.compiler.kinds import CELLS, NOTHING, Value, composed, returned
from trapgate.compiler.routine import Routine
from trapgate.compiler.target import IS_LINUX_X86_64
from trapgate.compiler.text import Code

_ATTRIBUTES = """
attributes #0 = { nounwind uwtable "no-builtins" }
attributes #1 = { nounwind uwtable noreturn noinline cold }
attributes #2 = { nounwind uwtable "no-builtins" cold }
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


CONVENTION = "swiftcc"
"""How functions of the core call each other: four integers come back in registers, as a page
walk's do, where C and LLVM's "fastcc" stop at three and go through memory."""


class Definitions:
    """The functions, constant arrays and strings of one LLVM module."""

    def __init__(self, is_dialect: Callable[[object], bool], *, checked: bool = False) -> None:
        self.is_dialect = is_dialect
        self.checked = checked
        self.asked: dict[str, Routine] = {}
        """The functions that are called, or exported."""
        self.callers: dict[str, list[Code]] = {}
        """Where each is called: the code around each call."""
        self._texts: list[str] = []
        self._arrays: dict[int, tuple[str, Any]] = {}

    def define(self, text: str) -> None:
        """Add a definition."""
        self._texts.append(text)

    def whole(self) -> str:
        """The module in LLVM's language."""
        return "\n".join([*self._texts, *([_STOP] if self.checked else []), _ATTRIBUTES])

    def ask(self, wanted: Routine) -> str:
        """The symbol of a function that this module is to have."""
        self.asked.setdefault(wanted.symbol, wanted)
        return f'@"{wanted.symbol}"'

    def put(
        self, code: Code, symbol: str, result: str, parameters: str, *, attributes: str = "#0"
    ) -> None:
        """Add a function with this code."""
        head = f'define {result} @"{symbol}"({parameters}) {attributes} {{'
        self.define(f"{head}\n{code.body()}\n}}")

    def call(self, code: Code, callee: Routine, arguments: Sequence[Value]) -> Value:
        """A call of a function with code of its own."""
        self.callers.setdefault(callee.symbol, []).append(code)
        operands = (one for value in arguments for one in value.operands)
        given = ", ".join(f"{value.kind.llvm} {value.text}" for value in operands)
        result = callee.result
        call = f"call {CONVENTION} {returned(result)} {self.ask(callee)}({given})"
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
        self.define(f'{name} = private unnamed_addr constant {shape} c"{data}"')
        return name

    def array(self, code: Code, constant: Any) -> Value:
        """A constant array of a Python module."""
        if id(constant) not in self._arrays:
            name = f"@array{len(self._arrays)}"
            numbers = ", ".join(f"i64 {number}" for number in constant.tolist())
            shape = f"[{len(constant)} x i64]"
            self.define(f"{name} = private unnamed_addr constant {shape} [{numbers}]")
            self._arrays[id(constant)] = name, constant
        name, _ = self._arrays[id(constant)]
        return code.array(CELLS, name, str(len(constant)))
