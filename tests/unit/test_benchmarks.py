"""The benchmarks' arithmetic, and the guests that they run."""

import struct

import iced_x86
import pytest

from benchmarks import floppy, guests, x86_vmm
from benchmarks.measure import Benchmark, Outcome, SkipSide, measure, rate, ratios
from trapgate.sdm.reasons import ExitReason


def test_sides_take_turns_and_warm_up_does_not_count() -> None:
    turns: list[str] = []
    benchmark = Benchmark("b", "work", "s", "lower", "none")

    @benchmark.side("trapgate native")
    def _() -> float:
        turns.append("ours")
        return float(len(turns))

    @benchmark.side("peer")
    def _() -> float:
        turns.append("peer")
        return 2.0

    @benchmark.side("absent")
    def _() -> float:
        raise SkipSide("not installed")

    ours, peer, absent = measure(benchmark, runs=3, warm_up=1)
    assert turns == ["ours", "peer"] * 4
    assert (ours.results, ours.median) == ((3.0, 5.0, 7.0), 5.0)
    assert (absent.skipped, absent.median) == ("not installed", None)
    assert ratios([ours, peer, absent]) == {"trapgate native": {"peer": 2.5}}


def test_a_side_has_one_name() -> None:
    benchmark = Benchmark("b", "work", "s", "lower", "none")
    benchmark.side("peer")(lambda: 1.0)
    with pytest.raises(ValueError, match="has a side peer already"):
        benchmark.side("peer")(lambda: 1.0)


def test_sides_are_compared_within_a_turn() -> None:
    # The machine is twice as slow in the second turn and four times in the third.
    ours = Outcome("trapgate", (3.0, 6.0, 12.0))
    peer = Outcome("peer", (2.0, 4.0, 16.0))
    assert ratios([ours, peer]) == {"trapgate": {"peer": 1.5}}


def test_a_skipped_trapgate_has_no_ratio() -> None:
    assert ratios([Outcome("trapgate", skipped="why"), Outcome("peer", (1.0,))]) == {}


def test_rate_leaves_out_the_start() -> None:
    assert rate(lambda count: 5.0 + count / 100, 1000, 3000) == pytest.approx(100)
    with pytest.raises(SkipSide, match="too noisy"):
        rate(lambda count: 1.0, 1, 2)


def disassembled(code: bytes) -> list[str]:
    formatter = iced_x86.Formatter(iced_x86.FormatterSyntax.NASM)
    decoder = iced_x86.Decoder(32, code, ip=guests.LOAD)
    return [formatter.format(instruction) for instruction in decoder]


@pytest.mark.parametrize(
    ("loop", "expected", "instructions"),
    [
        pytest.param(
            guests.tight_loop(7),
            "mov ecx,7|add eax,ecx|xor edx,eax|rol edx,3|dec ecx|jne short 00100005h",
            35,
            id="tight",
        ),
        pytest.param(
            guests.store_loop(7),
            "mov ecx,7|mov edi,200000h|mov eax,ecx|and eax,3FFFh|mov [edi+eax*4],ecx"
            "|mov [edi+eax*4+10000h],eax|dec ecx|jne short 0010000Ah",
            42,
            id="store",
        ),
        pytest.param(
            guests.fault_loop(7),
            "mov ecx,7|mov ebx,40000000h|mov eax,[ebx]|dec ecx|jne short 0010000Ah",
            21,
            id="fault",
        ),
    ],
)
def test_loops_are_what_they_say(loop: guests.Loop, expected: str, instructions: int) -> None:
    assert disassembled(loop.code) == expected.split("|")
    assert loop.instructions == instructions


def test_the_multiboot_guest_is_one_segment_with_header_and_tables() -> None:
    image = guests.multiboot_guest(guests.fault_loop(1))
    entry = struct.unpack_from("<I", image, 24)[0]
    offset, linear, _, size = struct.unpack_from("<4I", image, 52 + 4)
    segment = image[offset : offset + size]
    assert (linear, len(segment)) == (guests.LOAD, 0x3000)
    assert sum(struct.unpack_from("<III", segment)) & 0xFFFFFFFF == 0
    handler = struct.unpack_from("<HHHH", segment, 0x1000 + 64 + 8 * 14)
    at = (handler[3] << 16 | handler[0]) - guests.LOAD
    assert (at, handler[1:3]) == (12, (8, 0x8E00))
    assert disassembled(segment[at : entry - guests.LOAD]) == [
        "add esp,4",
        "add dword [esp],2",
        "iret",
    ]
    started = disassembled(segment[entry - guests.LOAD : 0x200])
    assert started[:2] == ["cli", "mov esp,180000h"]
    assert "mov cr0,eax" in started
    assert "out 0F4h,al" in started


def test_the_x86_vmm_steps_over_what_exits_with_its_reason() -> None:
    inner = guests.cpuid_loop(7)
    loop = x86_vmm.under_vmm(inner, ExitReason.CPUID)
    assert loop.instructions == inner.instructions
    assert loop.code.endswith(inner.code)
    on_exit = disassembled(loop.code[x86_vmm.ON_EXIT :])
    assert on_exit[:11] == [
        "mov eax,4402h",  # EXIT_REASON
        "vmread edx,eax",
        "cmp edx,0Ah",
        "jne short 00100025h",
        "mov eax,440Ch",  # VM_EXIT_INSTRUCTION_LENGTH
        "vmread ebx,eax",
        "mov eax,681Eh",  # GUEST_RIP
        "vmread edx,eax",
        "add edx,ebx",
        "vmwrite eax,edx",
        "vmresume",
    ]


def test_a_disk_boots_what_it_is_given() -> None:
    made = floppy.disk(b"image", 0x123456)
    assert len(made) == 1440 << 10
    assert made[510:517] == b"\x55\xaaimage"
    assert b"\xb8" + struct.pack("<I", 0x123456) + b"\xff\xe0" in made[:510]  # mov eax; jmp eax
    with pytest.raises(ValueError, match="too many"):
        floppy.disk(bytes(0x80001), 0)


def test_a_multiboot_disk_tells_of_module_and_command_line() -> None:
    kernel = guests.multiboot_guest(guests.tight_loop(7))
    made = floppy.multiboot_disk(kernel, b"module!", "kernel option", memory=32 << 20)
    image = made[512:]
    module = image.index(b"module!")
    assert module % 4096 == 0
    information = image[module + 4096 :]
    flags, low, high, _, line, count, modules = struct.unpack_from("<7I", information)
    assert (flags & 0b1101, low, high, count) == (0b1101, 639, 31 << 10, 1)
    at = guests.LOAD + module + 4096
    assert information[line - at :].startswith(b"kernel option\0")
    start, end = struct.unpack_from("<II", information, modules - at)
    assert (start, end) == (guests.LOAD + module, guests.LOAD + module + len(b"module!"))
