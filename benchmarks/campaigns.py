"""`python -m benchmarks.campaigns [linux DIR] [workers]`: runs a second, classified and stored.

Rates are by processor time of one worker; with `workers` also by the clock, of one and of two.
"""

import random
import resource
import sys
import tempfile
import time
from pathlib import Path

from trapgate.campaign.campaign import create, prepare, run
from trapgate.campaign.plan import Plan, parse_plan
from trapgate.campaign.results import Results
from trapgate.campaign.worker import Worker

_BUNDLED = """
title = "bundled"
[guest]
workload = "demand"
append = "timer=off"
[golden]
begin = { instructions = 10_200_000 }
end = { instructions = 10_000 }
[outcomes]
detected = ["panic: "]
"""
_LINUX = """
title = "Linux"
[guest]
kernel = "vmlinuz-amd64"
initrd = "initrd-amd64.cpio"
append = "console=ttyS0 nokaslr"
memory = "256M"
[golden]
begin = { instructions = 1_000_000_000 }
end = { instructions = 1_000_000 }
[outcomes]
detected = ["Oops", "BUG:", "panic"]
"""
_EVENTS = """
[[target]]
event = ["PF(code=2,cr2=0x1234)", "UD", "GP(0)", "DE", "DB"]
"""
_FLIPS = '[[target]]\nregister = "general"\n'


def plan(text: str, runs: int, folder: Path = Path()) -> Plan:
    """A plan with a sample of so many runs."""
    return parse_plan(f"{text}\n[sample]\nruns = {runs}\n", "benchmark", folder)


def rate(wanted: Plan) -> tuple[float, int]:
    """Runs a second of processor time, and how many."""
    with tempfile.TemporaryDirectory() as folder:
        results = create(prepare(wanted), Path(folder) / "c")
        worker = Worker(wanted, results.folder)
        worker.work(0, {})
        begin = time.process_time()
        for batch in range(1, results.batches):
            worker.work(batch, {})
        spent = time.process_time() - begin
        count = results.runs_total - len(results.range_of(0))
        return count / spent, count


def seconds(wanted: Plan, workers: int) -> float:
    """By the clock, from the first stored batch to the last."""
    with tempfile.TemporaryDirectory() as folder:
        results: Results = create(prepare(wanted), Path(folder) / "c")
        tallies = run(wanted, results, workers)
        for _ in range(workers):
            next(tallies)
        begin = time.monotonic()
        rest = sum(1 for _ in tallies)
        return (time.monotonic() - begin) / rest


def peer(runs: int = 200) -> float:
    """Runs a second of a script with bare Unicorn that makes its guest anew for each run.

    16 MiB of memory, 10,000 instructions of a loop, a register flipped at random, and the
    register's end looked at; no paging, no devices, no handler of faults.
    """
    import unicorn
    from unicorn import x86_const

    code = bytes.fromhex("40 4b 75 fc")  # inc eax; dec ebx; jnz
    memory = bytes(16 << 20)
    chance = random.Random(1)
    golden = 0
    begin = time.process_time()
    for number in range(runs):
        engine = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_32)
        engine.mem_map(0, len(memory))
        engine.mem_write(0, memory)
        engine.mem_write(0x1000, code)
        engine.reg_write(x86_const.UC_X86_REG_EBX, 1 << 20)
        moment = chance.randrange(1, 10_000)
        engine.emu_start(0x1000, 0x2000, count=moment)
        rip = engine.reg_read(x86_const.UC_X86_REG_EIP)
        if number:
            value = engine.reg_read(x86_const.UC_X86_REG_EAX)
            engine.reg_write(x86_const.UC_X86_REG_EAX, value ^ 1 << chance.randrange(32))
        engine.emu_start(rip, 0x2000, count=10_000 - moment)
        end = engine.reg_read(x86_const.UC_X86_REG_EAX)
        golden = golden if number else end
        assert (end == golden) == (not number)
    return runs / (time.process_time() - begin)


def main() -> None:
    """Print what was measured."""
    arguments = sys.argv[1:]
    for name, text, runs in (
        ("bundled, 10,000 instructions, exceptions", _BUNDLED + _EVENTS, 40_000),
        ("bundled, 10,000 instructions, register flips", _BUNDLED + _FLIPS, 100_000),
    ):
        found, count = rate(plan(text, runs))
        print(f"{name}: {found:,.0f} runs/s ({count:,} runs)", flush=True)
    if "linux" in arguments:
        folder = Path(arguments[arguments.index("linux") + 1])
        for name, text in (("exceptions", _EVENTS), ("register flips", _FLIPS)):
            for checkpoints in (0, 8):
                more = f"[run]\ncheckpoints = {checkpoints}\n"
                found, count = rate(plan(_LINUX + text + more, 1500, folder))
                print(
                    f"Linux, 1,000,000 instructions, {name}, {checkpoints} checkpoints: "
                    f"{found:,.0f} runs/s ({count:,} runs)",
                    flush=True,
                )
    if "workers" in arguments:
        wanted = plan(_BUNDLED + _EVENTS, 50_000)
        one, two = seconds(wanted, 1), seconds(wanted, 2)
        print(f"two workers: {one / two:.2f} times one")
    print(f"bare Unicorn, its guest made anew for each run: {peer():,.0f} runs/s")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"memory at most: {peak:,.0f} MiB")


if __name__ == "__main__":
    main()
