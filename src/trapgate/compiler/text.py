"""The text of a function in LLVM's language, as it grows."""

from trapgate.compiler.kinds import INT, MEMORY, Kind, Value


class Code:
    """The text of one LLVM function as it grows."""

    def __init__(self) -> None:
        self.slots: list[str] = []
        self.lines: list[str] = []
        self.ended = False
        """Nothing gets here: what is put is dropped, up to a label that something goes to."""
        self._count = 0
        self._wanted: set[str] = set()

    def name(self) -> str:
        """A new name, for a value or a label."""
        self._count += 1
        return f"%v{self._count}"

    def put(self, line: str) -> None:
        """An instruction without a result."""
        if not self.ended:
            self.lines.append(line)

    def let(self, instruction: str, kind: Kind = INT) -> Value:
        """An instruction's result."""
        name = self.name()
        self.put(f"{name} = {instruction}")
        return Value(name, kind)

    def slot(self, kind: Kind) -> Value:
        """Memory for a variable, which is stored before it is loaded; `text` is its address."""
        name = self.name()
        self.slots.append(f"{name} = alloca {kind.llvm}")
        return Value(name, kind)

    def load(self, slot: Value) -> Value:
        """What a slot holds."""
        return self.let(f"load {slot.kind.llvm}, ptr {slot.text}", slot.kind)

    def store(self, value: Value, slot: Value) -> None:
        """Change a slot."""
        self.put(f"store {value.kind.llvm} {value.text}, ptr {slot.text}")

    def pointer(self, address: str) -> str:
        """An address as LLVM wants it."""
        return self.let(f"inttoptr i64 {address} to ptr").text

    def array(self, kind: Kind, pointer: str, *lengths: str) -> Value:
        """An array from where it begins, and its lengths."""
        whole = self.let(f"insertvalue {kind.llvm} poison, ptr {pointer}, 0", kind)
        for n, length in enumerate(lengths, 1):
            whole = self.let(f"insertvalue {kind.llvm} {whole.text}, i64 {length}, {n}", kind)
        return whole

    def memory(self, pointer: str, length: str, watch: str) -> Value:
        """Physical memory, and where its stores are watched."""
        whole = self.array(MEMORY, pointer, length)
        return self.let(f"insertvalue {MEMORY.llvm} {whole.text}, ptr {watch}, 2", MEMORY)

    def end(self, terminator: str, *targets: str) -> None:
        """End a block; labels are given by `targets`."""
        if not self.ended:
            self._wanted.update(targets)
        self.put(terminator)
        self.ended = True

    def jump(self, label: str) -> None:
        """Go on at `label`."""
        self.end(f"br label {label}", label)

    def branch(self, condition: Value, then: str, otherwise: str) -> None:
        """Go on at `then` if `condition` holds."""
        if condition.number is not None:
            self.jump(then if condition.number else otherwise)
        else:
            text = f"br i1 {condition.text}, label {then}, label {otherwise}"
            self.end(text, then, otherwise)

    def label(self, label: str) -> None:
        """Begin a block."""
        if not self.ended:
            self.jump(label)
        if label in self._wanted:
            self.ended = False
            self.put(f"{label[1:]}:")

    def body(self) -> str:
        """The whole text between the braces."""
        return "\n".join([*self.slots, *self.lines])
