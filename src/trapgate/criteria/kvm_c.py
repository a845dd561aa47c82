"""The closed form of `closed_form` as C in the kernel's style, and a program that tests it."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import textwrap
from pathlib import Path
from typing import Final

from trapgate.criteria.closed_form import PageFaultFilter, Proved, merged, sketch
from trapgate.criteria.errors import ProofError

COMPILERS: Final = ("cc", "gcc", "clang")

FUNCTION: Final = """\
struct vmx_pf_filter {
	u32 mask;	/* PAGE_FAULT_ERROR_CODE_MASK */
	u32 match;	/* PAGE_FAULT_ERROR_CODE_MATCH */
	bool eb_pf;	/* EXCEPTION_BITMAP.PF */
};

static inline bool vmx_pf_filter_exits(const struct vmx_pf_filter *f, u32 error_code)
{
	return f->eb_pf == ((error_code & f->mask) == f->match);
}

/* A match outside of its mask is never met. */
static inline bool vmx_pf_filter_is_const(const struct vmx_pf_filter *f, bool exits)
{
	if (f->eb_pf == exits)
		return !f->mask && !f->match;
	return f->match & ~f->mask;
}

static inline u32 vmx_lowest_bit(u32 bits)
{
	return bits & -bits;
}

/*
 * @rest has all error codes exit but those of one cube.  Keep from them what
 * @cube cannot want: one bit on which all of @cube agrees.
 */
static struct vmx_pf_filter vmx_pf_filter_add_cube(struct vmx_pf_filter rest,
						   struct vmx_pf_filter cube)
{
	u32 bit = vmx_lowest_bit(cube.mask & ~rest.mask);

	if (cube.mask & rest.mask & (cube.match ^ rest.match))
		return rest;
	if (!bit)
		return (struct vmx_pf_filter) { .eb_pf = true };

	rest.mask |= bit;
	rest.match |= ~cube.match & bit;
	return rest;
}

/*
 * Merge the page-fault filters of L0 and L1 for vmcs02: every page fault that
 * exits under either of the two exits under the result, and as few others as
 * one mask, one match and EXCEPTION_BITMAP.PF can tell apart.  What exits and
 * is wanted by nobody has to be injected into L2; what only L1 wants is
 * reflected to L1.
 *
 * With EXCEPTION_BITMAP.PF set the codes that exit are a cube, those that agree
 * with the match on the mask's bits.  The least cube around two keeps the mask
 * bits on which both agree.  Where they agree on none, all codes have to exit
 * but those that differ from the one in a bit of its mask and from the other
 * in a bit of its own.  With EXCEPTION_BITMAP.PF clear all codes but a cube
 * exit; of two such cubes what both have may stay.
 */
static struct vmx_pf_filter nested_vmx_merge_pf_filters(struct vmx_pf_filter l0,
							struct vmx_pf_filter l1)
{
	struct vmx_pf_filter all = { .eb_pf = true }, f = { 0 };
	u32 differ = l0.mask & l1.mask & (l0.match ^ l1.match);
	u32 shared = l0.mask & l1.mask & ~(l0.match ^ l1.match);
	u32 first, second;

	if (vmx_pf_filter_is_const(&l0, true) || vmx_pf_filter_is_const(&l1, true))
		return all;
	if (vmx_pf_filter_is_const(&l1, false))
		return l0;
	if (vmx_pf_filter_is_const(&l0, false))
		return l1;

	if (!l0.eb_pf && !l1.eb_pf) {
		if (differ)
			return all;
		f.mask = l0.mask | l1.mask;
		f.match = l0.match | l1.match;
		return f;
	}
	if (!l0.eb_pf)
		return vmx_pf_filter_add_cube(l0, l1);
	if (!l1.eb_pf)
		return vmx_pf_filter_add_cube(l1, l0);

	if (shared) {
		f.eb_pf = true;
		f.mask = shared;
		f.match = l0.match & shared;
		return f;
	}

	/* Two bits: one of each mask. */
	first = vmx_lowest_bit(l0.mask);
	second = vmx_lowest_bit(l1.mask & ~first);
	if (!second) {
		second = l1.mask;
		first = vmx_lowest_bit(l0.mask & ~second);
	}
	if (!first)
		return all;
	f.mask = first | second;
	f.match = (~l0.match & first) | (~l1.match & second);
	return f;
}
"""

_TEST_HEAD: Final = """\
/* Tests the function below on all small filters, and on random and odd ones of 32 bits. */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

typedef uint32_t u32;
typedef uint64_t u64;

"""

_TEST_BODY: Final = """
#define BITS	3
#define CODES	(1u << BITS)
#define FILTERS	(2 * CODES * CODES)

static u64 state = 0x9E3779B97F4A7C15ull;

static u32 random_u32(void)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state >> 16;
}

static const u32 odd[] = { 0, 1, 2, 3, 9, 0x1F, 0x8000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF };

static u32 number(void)
{
	switch (random_u32() & 3) {
	case 0:
		return odd[random_u32() % (sizeof(odd) / sizeof(odd[0]))];
	case 1:
		return random_u32() & random_u32() & random_u32();
	case 2:
		return 1u << (random_u32() & 31);
	default:
		return random_u32();
	}
}

static struct vmx_pf_filter random_filter(void)
{
	struct vmx_pf_filter f;

	f.mask = number();
	f.match = random_u32() & 7 ? number() & f.mask : number();
	f.eb_pf = random_u32() & 1;
	return f;
}

static struct vmx_pf_filter small_filter(u32 n)
{
	struct vmx_pf_filter f;

	f.eb_pf = n & 1;
	f.mask = n >> 1 & (CODES - 1);
	f.match = n >> (1 + BITS) & (CODES - 1);
	return f;
}

static u32 members(struct vmx_pf_filter f)
{
	u32 code, found = 0;

	for (code = 0; code < CODES; code++)
		found |= (u32)vmx_pf_filter_exits(&f, code) << code;
	return found;
}

static int count(u32 bits)
{
	return __builtin_popcount(bits);
}

int main(void)
{
	u32 i, j, k;

	for (i = 0; i < FILTERS; i++) {
		for (j = 0; j < FILTERS; j++) {
			u32 want = members(small_filter(i)) | members(small_filter(j));
			u32 got = members(nested_vmx_merge_pf_filters(small_filter(i),
								      small_filter(j)));

			if (want & ~got) {
				printf("unsound: %u %u\\n", i, j);
				return 1;
			}
			for (k = 0; k < FILTERS; k++) {
				u32 other = members(small_filter(k));

				if (!(want & ~other) && count(other) < count(got)) {
					printf("not the best: %u %u\\n", i, j);
					return 1;
				}
			}
		}
	}
	for (i = 0; i < 200000; i++) {
		struct vmx_pf_filter l0 = random_filter(), l1 = random_filter();
		struct vmx_pf_filter f = nested_vmx_merge_pf_filters(l0, l1);

		for (j = 0; j < 48; j++) {
			u32 code = number();

			/* Near what the filters tell apart. */
			if (j & 1)
				code = l0.match ^ (1u << (random_u32() & 31));
			else if (j & 2)
				code = l1.match ^ (1u << (random_u32() & 31));
			if ((vmx_pf_filter_exits(&l0, code) || vmx_pf_filter_exits(&l1, code)) &&
			    !vmx_pf_filter_exits(&f, code)) {
				printf("unsound: %u %x %x, %u %x %x: code %x\\n", l0.eb_pf, l0.mask,
				       l0.match, l1.eb_pf, l1.mask, l1.match, code);
				return 1;
			}
		}
	}
	puts("ok");
	return 0;
}
"""

TEST_PROGRAM: Final = _TEST_HEAD + FUNCTION + _TEST_BODY


def compiler() -> str | None:
    """A C compiler, if there is one."""
    return next((found for name in COMPILERS if (found := shutil.which(name))), None)


def run_test_program(found: str, seconds: float = 120.0) -> str:
    """Compile and run the test program; what compiled it.

    Raises: ProofError if it does not compile, or says that the function is wrong.
    """
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder) / "test.c", Path(folder) / "test"
        source.write_text(TEST_PROGRAM, encoding="ascii")
        options = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror"]
        try:
            made = subprocess.run(  # noqa: S603 (the user's own compiler, our own program)
                [found, *options, "-o", str(program), str(source)],
                capture_output=True,
                text=True,
                timeout=seconds,
                check=False,
            )
            if made.returncode:
                first = (made.stderr.splitlines() or ["no message"])[0]
                raise ProofError(f"{found} refuses the C test program ({first})")
            ran = subprocess.run(  # noqa: S603
                [str(program)], capture_output=True, text=True, timeout=seconds, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ProofError(f"the C test program cannot be run ({error})") from None
    if ran.returncode or ran.stdout.strip() != "ok":
        raise ProofError(f"the C test program says: {ran.stdout.strip() or ran.returncode}")
    return Path(found).name


def _c(one: PageFaultFilter) -> str:
    return f"EB.PF {one.bit}, MASK 0x{one.mask:X}, MATCH 0x{one.match:X}"


def counterexample_to_sketch(l0: PageFaultFilter, l1: PageFaultFilter) -> int | None:
    """An error code that either wants and KVM's sketch loses; None if there is none."""
    wanted, given = (l0, l1), sketch(l0, l1)
    # Only codes that one of the three tells apart can differ.
    marks = {0}
    for bit in range(32):
        if (l0.mask | l1.mask | l0.match | l1.match) >> bit & 1:
            marks |= {mark | 1 << bit for mark in marks} if len(marks) < 1 << 16 else set()
    for code in sorted(marks):
        if any(one.exits(code) for one in wanted) and not given.exits(code):
            return code
    return None


def source(l0: PageFaultFilter, l1: PageFaultFilter, proved: Proved, tested: str | None) -> str:
    """The function, with what proves it, and what it makes of two filters."""
    lines = [
        "SPDX-License-Identifier: MIT",
        "",
        "Page-fault filters of L0 and L1, merged for vmcs02.",
        "",
        f"Proved: {proved.words()}.",
        f"Tested: compiled by {tested} and run, on all small and on random and odd filters."
        if tested
        else "Not compiled here: there is no C compiler.",
        "",
        f"L0:     {_c(l0)}",
        f"L1:     {_c(l1)}",
        f"vmcs02: {_c(merged(l0, l1))}",
    ]
    lost = counterexample_to_sketch(l0, l1)
    if lost is not None:
        told = f"with the OR of EB.PF ({_c(sketch(l0, l1))}), would lose page faults"
        lines += ["", f"Equal MASK and MATCH taken as they are, {told} with error code 0x{lost:X}."]
    wrapped = "\n".join(f" * {line}".rstrip() for line in _wrapped(lines))
    return f"/*\n{wrapped}\n */\n{FUNCTION}"


def _wrapped(lines: list[str], width: int = 76) -> list[str]:
    return [part for line in lines for part in (textwrap.wrap(line, width) or [""])]
