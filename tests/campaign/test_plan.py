"""Plans: what is wrong with one is said in a line, with file, field and remedy."""

from pathlib import Path

import numpy as np
import pytest

from tests.campaign.plans import EVENTS, HEAD, plan
from trapgate.campaign.campaign import prepare
from trapgate.campaign.errors import PlanError
from trapgate.campaign.plan import find_plan, parse_plan
from trapgate.campaign.runs import allot
from trapgate.campaign.targets import faults_of

GUEST = HEAD.replace('workload = "demand"', "{}")


def wrong(text: str, *words: str) -> None:
    with pytest.raises(PlanError) as caught:
        parse_plan(text, "p.toml", Path())
    told = str(caught.value)
    assert told.startswith("p.toml: ")
    assert "\n" not in told
    for word in words:
        assert word in told


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("", ["target", "[[target]]"]),
        ("x = 1\n[[target]]\nskip = true", ["unknown key"]),
        (EVENTS.replace("every", "evry"), ["when.evry", "did you mean every?"]),
        (EVENTS.replace("20", "0"), ["when.every", "choose from 1"]),
        (EVENTS.replace("20", "true"), ["when.every", "whole number"]),
        (EVENTS + 'faults = ["PFF"]', ["when", "no fault 'PFF'"]),
        (EVENTS + 'faults = ["PF"]', ["moments of its own"]),
        (EVENTS + "[sample]\nruns = 5\nhalf_width = 0.1", ["sample", "leave one out"]),
        (EVENTS + "[sample]\nhalf_width = 1.5", ["sample.half_width"]),
        (EVENTS + "[sample]\nconfidence = 0.2", ["sample.confidence"]),
        (EVENTS + '[sample]\nstratify = "moon"', ["sample.stratify"]),
        (EVENTS + "[run]\nbudget = -1", ["run.budget"]),
        (EVENTS + '[[class]]\nname = "hang"\nstatus = 1', ["class already"]),
        (EVENTS + '[[class]]\nname = "a"', ["give a condition"]),
        (EVENTS + '[[class]]\nname = "a"\nend = "bang"', ["no run ends by 'bang'"]),
        (EVENTS + '[[class]]\nname = "a"\noutput = "("', ["not a regular expression"]),
        (EVENTS + "[[class]]\nname = 3", ["is not text"]),
        (EVENTS + "[class]\nname = 3", ["[[class]]"]),
        ("[[target]]\n" + "a." * 50 + "b = 1", ["more than 32 parts"]),
    ],
)
def test_wrong_plans(body: str, words: list[str]) -> None:
    wrong(HEAD + body, *words)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"bundled"', '"no.elf"', ["guest.kernel", "no file no.elf"]),
        ('append = "timer=off"', 'vmcs = "no.toml"', ["guest.vmcs"]),
        ('append = "timer=off"', 'memory = "5T"', ["guest.memory", "16M"]),
        ('append = "timer=off"', 'memory = "4K"', ["guest.memory", "out of range"]),
        ("{ instructions = 3000 }", "{ output = '(' }", ["golden.end"]),
        ("{ instructions = 3000 }", "{ exit = false }", ["golden.end.exit"]),
        ("{ instructions = 3000 }", "{ exit = true, rip = 3 }", ["give one of"]),
        ("{ instructions = 3000 }", "5", ["golden.end", "not a table"]),
        ("{ instructions = 10_200_000 }", "{ exit = true }", ["golden.begin"]),
        ('["panic: "]', '["("]', ["outcomes.detected"]),
    ],
)
def test_wrong_heads(old: str, new: str, words: list[str]) -> None:
    assert old in HEAD
    wrong(HEAD.replace(old, new) + EVENTS, *words)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ('colour = "red"', ["target[1]", "give one of event"]),
        ('event = "XX"', ["target[1].event", "no event"]),
        ('event = "GP(0)@100"', ["target[1].event", "[when] says when"]),
        ('event = "PF"\nbits = "0-3"', ["unknown key"]),
        ('register = "EAZ"', ["no register 'EAZ'", "EAX"]),
        ('register = "EAX"\nbits = "0-64"', ["not a range"]),
        ('register = "EAX"\nbits = "40-50"', ["no fault is left"]),
        ('register = "EAX"\nmode = "melt"', ["target[1].mode"]),
        ('control = "CR2"', ["no control register"]),
        ('vmcs = "GUEST_RIPP"', ["GUEST_RIP"]),
        ('vmcs = "EXIT_REASON"', ["cannot be a target"]),
        ('vmcs = "PIN_BASED_CONTROLS"', ["cannot be a target"]),
        ('vmcs = "HOST_RIP"', ["cannot be a target"]),
        ('memory = "9-3"', ["not a range"]),
        ('entries = "0-1"\nfield = "Q"', ["no field 'Q'"]),
        ('entries = "0-1"\nlevel = 9', ["target[1].level"]),
        ('descriptor = "LDT"', ["no table 'LDT'"]),
        ('vectors = "0-256"', ["not a range"]),
        ('vectors = "3"\ntype = "odd"', ["no type 'odd'"]),
    ],
)
def test_wrong_targets(target: str, words: list[str]) -> None:
    made = parse_plan(HEAD + "[[target]]\n" + target, "p.toml", Path())
    with pytest.raises(PlanError) as caught:
        faults_of(made.targets, "p.toml", wide=False)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (HEAD.replace("3000", "0") + EVENTS, ["golden run is empty"]),
        (
            HEAD.replace("{ instructions = 3000 }", "{ exit = true }\nbudget = 9") + EVENTS,
            ["never comes to its own end"],
        ),
        (
            HEAD.replace("{ instructions = 3000 }", '{ output = "x{9}" }\nbudget = 9000') + EVENTS,
            ["never comes to output"],
        ),
        (
            HEAD.replace("{ instructions = 10_200_000 }", '{ symbol = "trp" }') + EVENTS,
            ["no symbol 'trp'", "did you mean trap?"],
        ),
        (HEAD + EVENTS + 'symbols = "spce_*"', ["no symbol"]),
        (HEAD + EVENTS + 'symbols = "swap_in"', ["never there"]),
        (
            HEAD.replace("10_200_000", "1000")
            .replace("3000", "100_000")
            .replace('"panic: "', '"paging on"')
            + EVENTS,
            ["golden run's output"],
        ),
        (
            HEAD.replace("{ instructions = 3000 }", "{ exit = true }")
            + '[[target]]\nmemory = "0-0xffffff"',
            ["too many"],
        ),
        (
            HEAD + '[[target]]\nmemory = "0xffffff-0x1000000"\nmode = "set 1"',
            ["memory ends at 0x1000000", "give guest.memory"],
        ),
    ],
)
def test_plans_that_cannot_be_run_are_refused_before_the_first_run(
    text: str, words: list[str]
) -> None:
    with pytest.raises(PlanError) as caught:
        prepare(parse_plan(text, "p.toml", Path()))
    for word in words:
        assert word in str(caught.value)


def test_a_golden_run_that_is_another_one_each_time_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from trapgate.campaign.bench import Bench

    go_to = Bench.go_to
    count = 0

    def moody(bench: Bench, moment: int) -> bool:
        nonlocal count
        count += 1
        there = go_to(bench, moment)
        bench.vm.processor.registers.rax = count  # what a device that looks at a clock may do
        return there

    monkeypatch.setattr(Bench, "go_to", moody)
    with pytest.raises(PlanError, match="not the same the second time"):
        prepare(plan())


def test_a_plan_s_name_may_be_wrong() -> None:
    with pytest.raises(PlanError, match="did you mean fault-handler"):
        find_plan("fault-handlr")
    with pytest.raises(PlanError, match="cannot be read"):
        find_plan("no.toml")


@pytest.mark.parametrize(
    ("wanted", "sizes", "counts"),
    [
        (10, [50, 50], [5, 5]),
        (10, [33, 33, 34], [3, 3, 4]),
        (10, [1, 1, 98], [1, 1, 8]),
        (3, [10, 10, 10, 10], [1, 1, 1, 1]),  # each stratum has one
        (7, [3, 3, 3], [3, 2, 2]),
        (8, [1, 1, 1, 1, 30], [1, 1, 1, 1, 4]),
    ],
)
def test_strata_have_their_shares(wanted: int, sizes: list[int], counts: list[int]) -> None:
    assert allot(wanted, np.array(sizes)).tolist() == counts


def test_strata_have_together_what_was_asked_for() -> None:
    sizes = np.random.default_rng(1).integers(1, 1000, 64)
    for wanted in (64, 100, 1000, int(sizes.sum()) - 1):
        counts = allot(wanted, sizes)
        assert counts.sum() == wanted
        assert (counts >= 1).all()
        assert (counts <= sizes).all()
