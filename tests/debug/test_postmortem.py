"""Broken guests, and the sentences that the stories of their ends must have."""

import json
import shutil
import subprocess
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from tests.debug.broken_guests import (
    BASE,
    FOREVER,
    GUESTS,
    HANDLER,
    HLT,
    PIC_AT_8,
    STI,
    UD2,
    Broken,
    flat,
    gate,
    long,
    with_idt,
)
from tests.unit.core_guest import GDT, IDT, SIZE, Guest
from tests.unit.guest_files import boot_sector
from trapgate.cli import app
from trapgate.debug.postmortem import PostMortem, explain_end
from trapgate.debug.postmortem.branches import last_branches
from trapgate.debug.postmortem.delivery import attempt
from trapgate.debug.postmortem.lines import SourceLines
from trapgate.debug.postmortem.view import View
from trapgate.events.idt import DELIVERED, TASK_GATE, deliver
from trapgate.paging import walk as paging
from trapgate.vmm.direct.machine import DirectMachine
from trapgate.vmm.loaders import load_guest
from trapgate.vmm.machine import VirtualMachine

MEMORY = 4 << 20
MASK = (1 << 64) - 1


def machine_with(guest: Broken, tmp_path: Path, engine: str = "auto") -> VirtualMachine:
    path = tmp_path / "guest"
    path.write_bytes(guest.file)
    machine = DirectMachine if guest.direct else VirtualMachine
    vm = machine(MEMORY, engine=engine)
    vm.load(load_guest(path, memory=MEMORY))
    for name, value in guest.fields.items():
        vm.vmcs[name] = value
    return vm


def postmortem_of(guest: Broken, tmp_path: Path, engine: str = "auto") -> PostMortem:
    vm = machine_with(guest, tmp_path, engine)
    vm.run(max_instructions=2_000_000)
    post_mortem = explain_end(vm)
    assert post_mortem is not None, vm.stopped
    return post_mortem


@pytest.mark.parametrize("guest", GUESTS, ids=lambda guest: guest.name)
def test_the_post_mortem_says_what_was_wrong(guest: Broken, tmp_path: Path) -> None:
    post_mortem = postmortem_of(guest, tmp_path)
    words = " ".join(str(post_mortem).split())
    assert post_mortem.end == guest.end
    for sentence in guest.says:
        assert sentence in words, words


@pytest.mark.parametrize("guest", GUESTS[::5], ids=lambda guest: guest.name)
def test_both_engines_tell_the_same(guest: Broken, tmp_path: Path) -> None:
    assert str(postmortem_of(guest, tmp_path, "native")) == str(
        postmortem_of(guest, tmp_path, "portable")
    )


RM_DIES = b"\x66\x2e\x0f\x01\x1e\x50\0\xcd\x80"
"""LIDT of an empty table (at CS:50H, where the sector has zeros), and INT 80H."""
# A timer's handler that breaks, behind the IDT of IRQ 0 at vector 20H; EB 00 is JMP $+2.
TICK = PIC_AT_8.replace(b"\xb0\x08\xe6\x21", b"\xb0\x20\xe6\x21") + STI
LAST_BRANCHES: dict[str, tuple[Broken | str, tuple[str, ...]]] = {
    "a loop, counted": ("stack not mapped", ("10001CH -> 100016H: loop, 1,023 times",)),
    "the fault before, not the end's own": (
        "error code left on the stack", ("10000BH -> 103000H: #GP",)),
    "there and back": ("red zone", ("100008H -> 103000H: #BP", "10300FH -> 100009H: iretq")),
    "none": ("SSE off", ()),
    "an interrupt": (
        Broken("tick",
               with_idt(TICK + FOREVER, {32: gate(HANDLER)}, at_103000=b"\xeb\0" + UD2), ()),
        ("100028H -> 100028H: jmp", "100028H -> 103000H: external interrupt 20H",
         "103000H -> 103002H: jmp")),
    "before a long string instruction": (
        # jmp $+2; mov edi, 200000h; mov ecx, 5000; rep stosb; ud2
        Broken("stos", flat(b"\xeb\0\xbf\0\0\x20\0\xb9\x88\x13\0\0\xf3\xaa" + UD2), ()),
        ("100000H -> 100002H: jmp",)),
    "a loop longer than anybody looks at": (
        # mov ecx, 5000; dec ecx; jnz; ud2
        Broken("loop", flat(b"\xb9\x88\x13\0\0\x49\x75\xfd" + UD2), ()),
        ("100006H -> 100005H: jne, 2,047 times or more",)),
    "calls": (
        Broken("calls", flat(b"\xe8\x02\0\0\0" + UD2 + b"\x39\xc0\x75\xf7\x74\x01\xc3\xc3"), ()),
        ("100000H -> 100007H: call", "10000BH -> 10000EH: je", "10000EH -> 100005H: ret")),
    "real mode": (
        Broken("real", boot_sector(b"\xea\x07\0\xc0\x07" + b"\x90" * 2 + RM_DIES), ()),
        ("7C00H -> 7C07H: jmp far",)),
}  # fmt: skip


@pytest.mark.parametrize("engine", ["native", "portable"])
@pytest.mark.parametrize("name", LAST_BRANCHES)
def test_the_last_branches_are_found_by_executing_again(
    name: str, engine: str, tmp_path: Path
) -> None:
    which, expected = LAST_BRANCHES[name]
    guest = next(one for one in GUESTS if one.name == which) if isinstance(which, str) else which
    vm = machine_with(guest, tmp_path, engine)
    vm.run(max_instructions=200_000)
    post_mortem = explain_end(vm, again=lambda: machine_with(guest, tmp_path, engine))
    assert post_mortem is not None
    assert post_mortem.end == "triple fault"
    assert post_mortem.branches == expected
    assert not expected or expected[-1] in str(post_mortem)
    assert not expected or expected[-1].replace(">", "&gt;") in post_mortem._repr_html_()
    assert post_mortem.values()["branches"] == list(expected)


def test_another_run_has_no_last_branches(tmp_path: Path) -> None:
    guest = next(one for one in GUESTS if one.name == "red zone")
    vm = machine_with(guest, tmp_path)
    vm.run()
    assert last_branches(lambda: machine_with(GUESTS[0], tmp_path), vm) is None
    assert last_branches(lambda: machine_with(guest, tmp_path), vm) is not None


def test_guests_that_end_as_they_should_have_no_post_mortem(tmp_path: Path) -> None:
    path = tmp_path / "guest"
    path.write_bytes(flat(b"\x90\x31\xc0\xe6\xf4\x90" * 2))
    vm = VirtualMachine(MEMORY)
    assert explain_end(vm) is None
    vm.load(load_guest(path, memory=MEMORY))
    vm.run()
    assert explain_end(vm) is None


def view_of(guest: Guest) -> View:
    def read(address: int, count: int) -> bytes | None:
        if not 0 <= address <= SIZE - count:
            return None
        return guest.ram[address : address + count].tobytes()

    return View(guest.v, read)


VECTORS = (0, 3, 6, 8, 13, 14, 32, 128)


@given(data=st.data(), bits=st.sampled_from([32, 64]), ring=st.sampled_from([0, 3]))
@settings(max_examples=150)
def test_the_way_through_the_idt_is_the_processor_s(
    data: st.DataObject, bits: int, ring: int
) -> None:
    guest = Guest(bits=bits, ring=ring)
    vector = data.draw(st.sampled_from(VECTORS))
    size = 16 if bits == 64 else 8
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(
            st.integers(IDT + size * vector, IDT + size * vector + size - 1)
            | st.integers(GDT, GDT + 0x67)
        )
        guest.ram[at] = data.draw(st.integers(0, 255))
    spoiled = data.draw(
        st.dictionaries(
            st.sampled_from(
                ["GUEST_IDTR_LIMIT", "GUEST_GDTR_LIMIT", "GUEST_TR_LIMIT", "GUEST_RSP"]
            ),
            st.integers(0, 0xFFF) | st.sampled_from([0, 7, 0x7F, 0x4000]),
            max_size=1,
        )
    )
    guest.set(**spoiled)
    kind = data.draw(st.sampled_from([0, 3, 4]))
    code = 0 if kind == 3 and vector in (8, 13, 14) else -1
    tried = attempt(view_of(guest), vector, kind, code)
    fault, error, _ = deliver(guest.v, guest.mem, vector, kind, code, 2)
    delivered = fault in (DELIVERED, TASK_GATE)
    if tried.gate >> 40 & 0x1F == 5 and not tried.wrong:
        return  # a task gate, whose TSS is not looked at here
    assert (tried.wrong == "") == delivered, (tried, fault, error)


@given(data=st.data(), mode=st.sampled_from(["p32", "pae", "l64"]))
@settings(max_examples=150)
def test_walks_are_the_processor_s(data: st.DataObject, mode: str) -> None:
    guest = Guest(bits=64 if mode == "l64" else 32)
    tables = 0x10000
    pages = data.draw(
        st.lists(st.sampled_from([0, 0x1000, 0x2000, 0x3000]), min_size=4, max_size=4)
    )
    for level, page in enumerate(pages):
        for index in (0, 1, 511):
            flags = data.draw(
                st.sampled_from([7, 3, 5, 1, 0, 0x87, 0x83, 1 << 63 | 7, 1 << 45 | 7])
            )
            entry = (tables + page) | flags if level < 3 else 0x20000 | flags
            width = 4 if mode == "p32" else 8
            at = tables + 0x1000 * level + index * width
            guest.ram[at : at + width] = list(
                (entry & (1 << 8 * width) - 1).to_bytes(width, "little")
            )
    guest.set(GUEST_CR3=tables, GUEST_CR0=0x80010031 if data.draw(st.booleans()) else 0x80000031)
    guest.set(GUEST_CR4=0x2010 if mode == "p32" else 0x2030)
    nxe = 0x800 * data.draw(st.booleans())
    guest.set(GUEST_IA32_EFER=nxe | (0x500 if mode == "l64" else 0))
    if mode == "pae" and paging.load_pointers(guest.v, guest.mem) >= 0:
        return  # MOV to CR3 refuses such pointers
    linear = data.draw(st.sampled_from([0, 0x1234, 0x1FF000, 0x200000, 0x400010, 0x40000000]))
    user, write = data.draw(st.booleans()), data.draw(st.booleans())
    fetch = not write and data.draw(st.booleans())
    mine = view_of(guest).walk(linear, write=write, user=user, fetch=fetch)
    access = 2 if fetch else int(write)
    physical, error, _, _ = paging.walk(guest.v, 2, guest.mem, linear, access, int(user))
    assert (mine.physical is None) == (error >= 0), (mine, error)
    if error < 0:
        assert mine.physical == physical


def test_pointers_that_memory_no_longer_holds_are_told() -> None:
    guest = Guest(bits=32)
    guest.set(GUEST_CR0=0x80000031, GUEST_CR3=0x10000, GUEST_CR4=0x2030, GUEST_IA32_EFER=0)
    guest.ram[0x10000:0x10008] = list((0x11001).to_bytes(8, "little"))
    assert paging.load_pointers(guest.v, guest.mem) < 0
    guest.ram[0x10000:0x10008] = [0] * 8
    walk = view_of(guest).walk(0)
    assert [step.name for step in walk.steps] == ["PDPTE", "PDE"]
    assert "PDPTE at 10000H = 11001H (P, loaded with CR3; memory holds 0H)" in str(walk)


SYMBOLS = f"{BASE:016x} T start\n{BASE + 0x100:016x} T finish\n"


def test_places_have_names_if_somebody_knows_them(tmp_path: Path) -> None:
    (tmp_path / "guest").write_bytes(flat(b"\x90\x90" + UD2))
    (tmp_path / "System.map").write_text(SYMBOLS)
    result = CliRunner().invoke(
        app, ["run", str(tmp_path / "guest"), "--symbols", str(tmp_path / "System.map")]
    )
    assert result.exit_code == 1
    assert "RIP 100002H (start+2H)" in " ".join(result.stderr.split())


def test_the_command_tells_it_in_words_json_and_html(tmp_path: Path) -> None:
    path, page = tmp_path / "guest<b>", tmp_path / "why.html"
    path.write_bytes(long(UD2))
    result = CliRunner().invoke(app, ["run", str(path), "--report", str(page)])
    assert result.exit_code == 1
    assert "what probably helps: no IDT was loaded" in result.stderr
    html = page.read_text()
    assert "<title>guest&lt;b&gt;: triple fault</title>" in html
    assert "no IDT was loaded before the first exception" in html
    answer = json.loads(CliRunner().invoke(app, ["run", str(path), "--json"]).stdout)
    assert answer["post_mortem"]["end"] == "triple fault"
    assert answer["post_mortem"]["scenes"][1]["title"] == "first: #UD, invalid opcode"
    assert answer["post_mortem"]["registers"]["RIP"] == BASE


def test_a_page_that_cannot_be_written_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "guest").write_bytes(flat(b"\xfa" + HLT))
    result = CliRunner().invoke(app, ["run", str(tmp_path / "guest"), "--report", str(tmp_path)])
    assert result.exit_code == 2
    assert "cannot be written" in result.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("option", "file", "words"),
    [
        ("--report", "no/such.html", "is not a directory"),
        ("--symbols", "nosuch", "cannot be read"),
        ("--symbols", "guest", "contains no function"),
    ],
)
def test_files_of_a_post_mortem_are_looked_at_before_the_run(
    tmp_path: Path, option: str, file: str, words: str
) -> None:
    # mov dx, 3F8h; mov al, "x"; out dx, al
    (tmp_path / "guest").write_bytes(flat(b"\x66\xba\xf8\x03\xb0x\xee" + UD2))
    arguments = ["run", str(tmp_path / "guest"), option, str(tmp_path / file)]
    result = CliRunner().invoke(app, arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert words in line


def test_output_of_the_guest_cannot_spoil_the_post_mortem(tmp_path: Path) -> None:
    # mov dx, 3F8h; mov al, 1Bh; out dx, al
    guest = flat(b"\x66\xba\xf8\x03\xb0\x1b\xee\xb0\x3c\xee" + UD2)
    post_mortem = postmortem_of(Broken("escape", guest, ()), tmp_path)
    assert post_mortem.output == (".<",)
    assert "&lt;" in post_mortem._repr_html_()


SOURCE = """static int depth;
static void crash(int n)
{
    depth = n;
    __asm__ volatile ("ud2");
}
void kmain(void)
{
    crash(7);
}
"""


@pytest.fixture(scope="module", params=[4, 5], ids=["DWARF 4", "DWARF 5"])
def debuggable(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ELF guest with debugging information that executes UD2 in line 5."""
    pytest.importorskip("elftools")
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("gcc is not installed")
    folder = tmp_path_factory.mktemp("source")
    (folder / "crash.c").write_text(SOURCE)
    options = (
        "-m32", "-g", f"-gdwarf-{request.param}", "-O0", "-ffreestanding", "-fno-pic", "-no-pie",
        "-nostdlib", "-static", "-Wl,-Ttext=0x100000", "-Wl,-e,kmain", "-Wl,--build-id=none",
    )  # fmt: skip
    command = [compiler, *options, "crash.c", "-o", "guest.elf"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder / "guest.elf"


def test_source_lines_are_told(debuggable: Path) -> None:
    result = CliRunner().invoke(app, ["run", str(debuggable), "--memory", "4M"])
    assert "crash.c:5) in 32-bit protected mode" in result.stderr
    lines = SourceLines(debuggable)
    assert lines(0x100000) == "crash.c:3"
    assert lines(0x1000) == lines(1 << 63) == ""


def test_damaged_debugging_information_names_no_lines(debuggable: Path, tmp_path: Path) -> None:
    content = debuggable.read_bytes()
    damaged = tmp_path / "damaged.elf"
    random = Random(5)
    for length in (0, 3, 40, 600, len(content) // 2, len(content) - 1):
        damaged.write_bytes(content[:length])
        assert SourceLines(damaged)(0x100000) in ("", "crash.c:3")
    for _ in range(150):
        spoiled = bytearray(content)
        for _ in range(random.randint(1, 30)):
            spoiled[random.randrange(len(spoiled))] = random.randrange(256)
        damaged.write_bytes(spoiled)
        assert SourceLines(damaged)(0x100000).isprintable()
