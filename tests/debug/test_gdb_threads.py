"""Threads of gdb: processors, machines, and x86 VMMs with their guests."""

import time

from tests.debug.gdb_client import Client, debugged, waiting
from tests.debug.test_gdb import LOOP_32, NOP, STORE, gdb, needs_gdb
from tests.debug.test_gdb_backwards import EAX, EIP, machine, moment
from tests.guests import smp_guest
from trapgate import guests
from trapgate.demo import x86 as demo_x86
from trapgate.sdm import cells as f
from trapgate.vmm.actions import End
from trapgate.vmm.loaders import parse_guest
from trapgate.vmm.machine import VirtualMachine

RIP_OF_LOOP = smp_guest.WORK + 5


def thread(stop: bytes) -> int:
    return int(stop.partition(b"thread:")[2].rstrip(b";"), 16)


def words(client: Client, number: int) -> str:
    answer = client.ask(f"qThreadExtraInfo,{number:x}")
    return bytes.fromhex(answer.decode()).decode()


def hypervisor() -> VirtualMachine:
    """The bundled hypervisor, whose guest is the bundled kernel."""
    vm = VirtualMachine(demo_x86.MEMORY)
    line = f"hypervisor.elf policy=all {guests.command_line('demand')}"
    image, kernel = guests.hypervisor(), guests.image()
    vm.load(
        parse_guest(
            image, file="hypervisor.elf", memory=demo_x86.MEMORY, append=line, initrd=kernel
        )
    )
    return vm


def test_a_vmm_and_its_guest_are_threads() -> None:
    with debugged(hypervisor()) as (client, made):
        assert client.ask("qfThreadInfo") == b"m1"
        assert words(client, 1) == "machine 0, processor 0"
        asked: list[int] = []

        def ask(vm: VirtualMachine) -> None:
            if not asked:
                asked.append(1)
                client.send(b"\x03")
                time.sleep(0.2)
                vm.at(vm.processor.time + 1, lambda _: None)  # an exit to notice it at

        made.vm.at(10_300_000, ask)
        assert client.ask("c") == b"T02thread:2;"
        assert client.ask("qfThreadInfo") == b"m1,2"
        assert words(client, 1) == "machine 0, processor 0: VMM, parked"
        assert words(client, 2).startswith("machine 0, processor 0: guest of VMCS ")
        current = made.vm.processor.x86_vmm.vmcs
        assert client.ask("Hg1") == b"OK"
        assert client.number(EIP) == int(current[f.HOST_RIP])
        assert client.ask(f"p{EAX:x}") == b"xxxxxxxx"
        assert client.ask(f"P{EIP:x}=00000000") == b"E01"
        assert "GUEST_CR3" in client.monitor("vmcs GUEST_CR3")
        code = made.vm.processor.memory.read(int(current[f.HOST_RIP]), 4)
        assert client.ask(f"m{int(current[f.HOST_RIP]):x},4") == code.hex().encode()
        assert client.ask("Hg2") == b"OK"
        assert client.number(EIP) == made.vm.vmcs["GUEST_RIP"]
        assert client.ask("T2") == b"OK"
        assert client.ask("T3") == client.ask("Hg9") == b"E01"
        # The VMM's entry point is met when its guest exits.
        assert client.ask(f"Z0,{int(current[f.HOST_RIP]):x},1") == b"OK"
        assert client.ask("c") == b"T05swbreak:;thread:1;"
        assert words(client, 1) == "machine 0, processor 0: VMM"
        assert words(client, 2).endswith("parked")
        # A second visit, so that its guest has run in between; then back to an instruction of that.
        assert client.ask("c") == b"T05swbreak:;thread:1;"
        there = moment(client, made)
        assert client.ask("bs") == b"T05thread:2;"
        assert client.number(EIP) == int(current[f.GUEST_RIP])
        inside = [moment(client, made)]
        assert client.ask("bs") == b"T05thread:2;"
        inside.append(moment(client, made))
        assert client.ask("vCont;s:2;c") == b"T05thread:2;"
        assert moment(client, made) == inside[0]
        assert client.ask("c") == b"T05swbreak:;thread:1;"
        assert moment(client, made) == there


def test_processors_are_threads() -> None:
    work = smp_guest.times(300, smp_guest.locked_increment(smp_guest.COUNTER))
    vm = smp_guest.machine(work, processors=3, engine="native", length=137)
    with debugged(vm) as (client, made):
        assert client.ask("qfThreadInfo") == b"m1,3,5"
        assert client.ask(f"Z0,{RIP_OF_LOOP:x},1") == b"OK"
        met: set[int] = set()
        while len(met) < 3:
            stop = client.ask("c")
            assert stop.startswith(b"T05swbreak:;")
            met.add(thread(stop))
            assert client.number(EIP) == RIP_OF_LOOP
        assert met == {1, 3, 5}
        assert client.ask(f"z0,{RIP_OF_LOOP:x},1") == b"OK"
        for number in (1, 3, 5):
            assert client.ask(f"Hg{number}") == b"OK"
            then = client.number(EIP)
            assert then >= smp_guest.WORK
            # A step of a thread is that thread's, whose turn has to come.
            stop = client.ask(f"vCont;s:{number};c")
            assert thread(stop) == number
            assert client.number(EIP) != then
        assert client.ask("c") == b"W00"
        assert made.end().end is End.DEBUG_EXIT
    assert smp_guest.word(vm, smp_guest.COUNTER) == 900


def test_machines_are_threads() -> None:
    machines = [machine(LOOP_32) for _ in range(2)]
    machines[1].number = 1
    with debugged(machines) as (client, made):
        assert client.ask("qfThreadInfo") == b"m1,3"
        assert words(client, 3) == "machine 1, processor 0"
        client.ask(f"Z0,{NOP:x},1")
        stops = [client.ask("c") for _ in range(4)]
        assert {thread(stop) for stop in stops} == {1}
        assert client.ask("Hg3") == b"OK"
        assert client.number(EIP) != NOP
        assert client.ask(f"P{EAX:x}=20000000") == b"OK"
        assert client.ask("Hg1") == b"OK"
        assert client.number(EAX) == 4
        assert thread(client.ask("c")) == 1
        assert thread(client.ask("c")) == 3
        assert client.number(EAX) == 0x21
        assert client.ask("bs") == b"T05thread:3;"
        assert client.number(EIP) == STORE
        assert made.vm.stopped is not None
        assert client.ask("qfThreadInfo") == b"m3"
        assert client.ask("s") == b"T05thread:3;"
        client.ask(f"z0,{NOP:x},1")
        assert client.ask("c") == b"W00"


@needs_gdb
def test_gdb_lists_and_chooses_threads() -> None:
    machines = [machine(LOOP_32) for _ in range(2)]
    machines[1].number = 1
    with waiting(machines) as made:
        said = gdb(
            made,
            f"break *{NOP:#x} thread 2",
            "info threads",
            "continue",
            'printf "first %d\\n", $eax',
            "thread 1",
            'printf "other %d\\n", $eax',
            "delete",
            "continue",
        )
        assert "machine 1, processor 0" in said
        assert "first 1" in said
        assert "exited normally" in said
