"""The footer of a Parquet file, taken apart and put together again.

Parquet keeps its description at the end of the file, and pyarrow writes it once, on
closing. A trace needs a new one after every row group, with each row group moved from
the position it was encoded for to the one it has in the trace. The footer is a Thrift
structure in the compact protocol: few and simple rules, so here they are.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

MAGIC = b"PAR1"
TRAILER = 8
"""Bytes after the footer: its length in 4 bytes (little endian), then the magic number."""

# Compact-protocol types ("Thrift compact protocol encoding").
_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(1, 13)

# Field numbers in Parquet's FileMetaData, RowGroup, ColumnChunk and ColumnMetaData.
_NUM_ROWS, _ROW_GROUPS = 3, 4
_COLUMNS, _GROUP_ROWS, _GROUP_OFFSET, _ORDINAL = 1, 3, 5, 7
_CHUNK_OFFSET, _CHUNK_METADATA = 2, 3
_PAGE_OFFSETS = (9, 10, 11)  # of the data pages, the index page and the dictionary page

_LAST_ORDINAL = 0x7FFF


@dataclass
class Struct:
    """A Thrift structure: field number -> [type, value], in the order of the numbers."""

    fields: dict[int, list[object]] = field(default_factory=dict)

    def child(self, number: int) -> "Struct":
        """The structure in that field."""
        value = self.fields[number][1]
        assert isinstance(value, Struct)
        return value

    def children(self, number: int) -> list["Struct"]:
        """The structures in the list in that field."""
        value = self.fields[number][1]
        assert isinstance(value, List)
        return [item for item in value.items if isinstance(item, Struct)]

    def integer(self, number: int) -> int:
        """The integer in that field."""
        value = self.fields[number][1]
        assert isinstance(value, int)
        return value

    def move(self, number: int, distance: int) -> None:
        """Add `distance` to a file offset; 0 and an absent field mean that there is none."""
        if number in self.fields and self.integer(number):
            self.fields[number][1] = self.integer(number) + distance


@dataclass
class List:
    """A Thrift list: the type of its elements, and them."""

    of: int
    items: list[object]


class _Reader:
    """Reads compact-protocol values from `data`, from `at` on."""

    def __init__(self, data: bytes, at: int = 0) -> None:
        self.data = data
        self.at = at

    def byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1]

    def take(self, count: int) -> bytes:
        self.at += count
        return self.data[self.at - count : self.at]

    def varint(self) -> int:
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    def zigzag(self) -> int:
        value = self.varint()
        return (value >> 1) ^ -(value & 1)

    def struct(self) -> Struct:
        result = Struct()
        number = 0
        while head := self.byte():
            number = number + (head >> 4) if head >> 4 else self.zigzag()
            kind = head & 15
            if kind in (_TRUE, _FALSE):
                result.fields[number] = [kind, kind == _TRUE]
            else:
                result.fields[number] = [kind, self.value(kind)]
        return result

    def value(self, kind: int) -> object:
        if kind == _STRUCT:
            return self.struct()
        if kind in (_I16, _I32, _I64):
            return self.zigzag()
        if kind == _BINARY:
            return self.take(self.varint())
        if kind in (_LIST, _SET):
            head = self.byte()
            count = head >> 4 if head >> 4 != 15 else self.varint()
            return List(head & 15, [self.value(head & 15) for _ in range(count)])
        if kind in (_TRUE, _FALSE, _BYTE):
            return self.byte()
        if kind == _DOUBLE:
            return self.take(8)
        raise ValueError(f"Thrift type {kind} in a Parquet footer")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _zigzag(value: int) -> bytes:
    return _varint(value << 1 if value >= 0 else (-value << 1) - 1)


def _fields(struct: Struct) -> Iterator[bytes]:
    before = 0
    for number, (kind, value) in struct.fields.items():
        assert isinstance(kind, int)
        yield _header(kind, number, before)
        before = number
        if kind not in (_TRUE, _FALSE):
            yield encode(kind, value)
    yield b"\0"


def _header(kind: int, number: int, before: int) -> bytes:
    if 0 < number - before < 16:
        return bytes([(number - before) << 4 | kind])
    return bytes([kind]) + _zigzag(number)


def _list_header(kind: int, count: int) -> bytes:
    return bytes([count << 4 | kind]) if count < 15 else bytes([0xF0 | kind]) + _varint(count)


def encode(kind: int, value: object) -> bytes:
    """The bytes of a value of that type."""
    if isinstance(value, Struct):
        return b"".join(_fields(value))
    if isinstance(value, List):
        items = (encode(value.of, item) for item in value.items)
        return _list_header(value.of, len(value.items)) + b"".join(items)
    if isinstance(value, bytes):
        return _varint(len(value)) + value if kind == _BINARY else value
    assert isinstance(value, int)
    return bytes([value]) if kind in (_TRUE, _FALSE, _BYTE) else _zigzag(value)


def split(piece: bytes) -> tuple[bytes, Struct]:
    """A whole Parquet file as (its bytes between magic number and footer, its footer)."""
    length = int.from_bytes(piece[-TRAILER:-4], "little")
    start = len(piece) - TRAILER - length
    return piece[len(MAGIC) : start], _Reader(piece, start).struct()


def moved_row_group(footer: Struct, distance: int, ordinal: int) -> tuple[bytes, int]:
    """The only row group of `footer`, moved by `distance` bytes: (its structure, its rows).

    `ordinal` is its number in the new file; the field has 16 bits and is optional.
    """
    (group,) = footer.children(_ROW_GROUPS)
    for chunk in group.children(_COLUMNS):
        chunk.move(_CHUNK_OFFSET, distance)
        for number in _PAGE_OFFSETS:
            chunk.child(_CHUNK_METADATA).move(number, distance)
    group.move(_GROUP_OFFSET, distance)
    if ordinal <= _LAST_ORDINAL:
        group.fields[_ORDINAL] = [_I16, ordinal]
    else:
        group.fields.pop(_ORDINAL, None)
    return encode(_STRUCT, group), group.integer(_GROUP_ROWS)


def join(template: Struct, groups: bytes, count: int, rows: int) -> bytes:
    """A footer like `template`, with `count` encoded row groups holding `rows` rows."""
    out = []
    before = 0
    for number, (kind, value) in template.fields.items():
        assert isinstance(kind, int)
        out.append(_header(kind, number, before))
        before = number
        if number == _ROW_GROUPS:
            out += [_list_header(_STRUCT, count), groups]
        else:
            out.append(encode(kind, rows if number == _NUM_ROWS else value))
    return b"".join(out) + b"\0"


def trailer(length: int) -> bytes:
    """The last bytes of a Parquet file whose footer begins `length` bytes before them."""
    return length.to_bytes(4, "little") + MAGIC
