"""The text of a function in LLVM's language, as it grows."""

from collections.abc import Sequence

from trapgate.compiler.kinds import CELLS, INT, MEMORY, POINTER, Kind, Value, composed


def stores(value: Value, slot: Value) -> list[str]:
    """The instructions that change a slot."""
    pairs = zip(value.operands, slot.operands, strict=True)
    return [f"store {one.kind.llvm} {one.text}, ptr {place.text}" for one, place in pairs]


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
        """Memory for a variable, which is stored before it is loaded: an address per operand."""

        def one(kind: Kind) -> Value:
            name = self.name()
            self.slots.append(f"{name} = alloca {kind.llvm}")
            return Value(name, kind)

        return composed(kind, map(one, kind.operands))

    def load(self, slot: Value) -> Value:
        """What a slot holds."""
        if not slot.parts:  # as most
            return self.let(f"load {slot.kind.llvm}, ptr {slot.text}", slot.kind)
        loaded = (
            self.let(f"load {one.kind.llvm}, ptr {one.text}", one.kind) for one in slot.operands
        )
        return composed(slot.kind, loaded)

    def store(self, value: Value, slot: Value) -> None:
        """Change a slot."""
        for line in stores(value, slot):
            self.put(line)

    def pointer(self, address: str) -> str:
        """An address as LLVM wants it."""
        return self.let(f"inttoptr i64 {address} to ptr").text

    def array(self, kind: Kind, pointer: str, *lengths: str) -> Value:
        """An array from where it begins, and its lengths."""
        return Value("", kind, (Value(pointer, POINTER), *(Value(one, INT) for one in lengths)))

    def memory(self, pointer: str, length: str, watch: str) -> Value:
        """Physical memory, and where its stores are watched."""
        return Value("", MEMORY, (*self.array(CELLS, pointer, length).parts, Value(watch, POINTER)))

    def insert(self, place: int, lines: Sequence[str]) -> None:
        """Put instructions in front of line `place`."""
        self.lines[place:place] = lines

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

    def is_wanted(self, label: str) -> bool:
        """Whether something goes to a label so far."""
        return label in self._wanted

    def label(self, label: str) -> None:
        """Begin a block."""
        if not self.ended:
            self.jump(label)
        if label in self._wanted:
            self.ended = False
            self.put(f"{label[1:]}:")

    @property
    def size(self) -> int:
        """How many instructions it has, without those that LLVM will drop first: plain jumps, and
        loads and stores of variables.
        """
        slots = {slot.partition(" ")[0] for slot in self.slots}
        return sum(
            not (line.endswith(":") or line.startswith("br label"))
            and line.rpartition(" ")[2] not in slots
            for line in self.lines
        )

    def body(self) -> str:
        """The whole text between the braces."""
        return "\n".join([*self.slots, *self.lines])
