/* Fault probes: provoke one fault, and compare what the handler got with what the manual
 * says. The verdict names what was wrong, so that a processor's author can mend it. */
#include "kernel.h"

extern const struct probe ring0_probes[], ring0_probes_end[];

static const char *const mnemonics[] = {
    "#DE", "#DB", "NMI", "#BP", "#OF", "#BR", "#UD", "#NM", "#DF", "#09", "#TS",
    "#NP", "#SS", "#GP", "#PF", "#15", "#MF", "#AC", "#MC", "#XM",
};

#define DR7_EXECUTE_DR0 0x00000402u /* G0; bit 10 is always 1 */
#define DR7_NONE 0x00000400u
#define DR6_NONE 0xFFFF0FF0u
#define DR6_B0 0x00000001u
#define DR6_BS 0x00004000u

static struct probe wanted;
static u32 wanted_ring;
static bool armed, caught;
static struct frame found;
static u32 found_cr2, found_dr6;

static void write_debug(u32 dr0, u32 dr7) {
    __asm__ volatile("mov %0, %%dr0\n\tmov %1, %%dr6\n\tmov %2, %%dr7"
                     :
                     : "r"(dr0), "r"(DR6_NONE), "r"(dr7));
}

static void arm(const struct probe *p, u32 ring) {
    wanted = *p;
    wanted_ring = ring;
    caught = false;
    armed = true;
    if (wanted.setup & SETUP_TASK_SWITCHED)
        write_cr0(read_cr0() | CR0_TS);
    if (wanted.setup & SETUP_BREAKPOINT)
        write_debug(wanted.at, DR7_EXECUTE_DR0);
    else if (wanted.vector == DB_VECTOR)
        write_debug(0, DR7_NONE); /* elsewhere: DR6.B0 may tell of a disabled match too */
}

static void disarm(void) {
    armed = false;
    if (wanted.setup & SETUP_TASK_SWITCHED)
        write_cr0(read_cr0() & ~CR0_TS);
    if (wanted.vector == DB_VECTOR)
        write_debug(0, DR7_NONE);
}

/* Called first for every trap. Interrupts and system calls go on as ever, and so does a
 * page fault that the process would have had without a probe (its stack, say). Any other
 * exception is the armed probe's, right or wrong, or a wrong one would loop. */
bool probe_catches(struct frame *f) {
    if (!armed || f->vector >= IRQ_BASE)
        return false;
    if (f->vector == PF_VECTOR && read_cr2() != wanted.address && space_readable(read_cr2(), 1))
        return false;
    caught = true;
    found = *f;
    found_cr2 = read_cr2();
    if (f->vector == DB_VECTOR)
        __asm__ volatile("mov %%dr6, %0" : "=r"(found_dr6));
    disarm();
    f->eip = wanted.next;
    f->eflags &= ~(EFLAGS_TF | EFLAGS_AC);
    return true;
}

static u32 dr6_wanted(void) { return wanted.setup & SETUP_BREAKPOINT ? DR6_B0 : DR6_BS; }

static bool wrong(bool is_wrong, const char *what, u32 got) {
    if (is_wrong) {
        put_text(" WRONG ");
        put_text(what);
        put_text(" ");
        put_hex(got, 8);
    }
    return is_wrong;
}

u32 probe_done(void) {
    if (armed)
        disarm();
    put_text("fault ");
    put_text(wanted.vector < 20 ? mnemonics[wanted.vector] : "???");
    put_text(" ring ");
    put_decimal(wanted_ring);
    put_text(" ");
    put_text(wanted.text);
    put_text(": ");
    if (!caught) {
        bool optional = wanted.setup & SETUP_OPTIONAL;
        put_text(optional ? "not raised by this processor\n" : "WRONG, not raised\n");
        return optional ? PROBE_ABSENT : PROBE_WRONG;
    }
    put_text("vector ");
    put_decimal(wanted.vector);
    if (wanted.error != NO_ERROR_CODE) {
        put_text(" error ");
        put_hex(wanted.error, 4);
    }
    bool bad = wrong(found.vector != wanted.vector, "vector", found.vector);
    /* The stub pushes 0 where the processor pushes nothing. */
    u32 error = wanted.error == NO_ERROR_CODE ? 0 : wanted.error;
    bad |= wrong(found.error != error, "error", found.error);
    bad |= wrong(found.eip != wanted.at, "eip", found.eip);
    bad |= wrong((found.cs & 3) != wanted_ring, "cs", found.cs);
    if (wanted.vector == PF_VECTOR)
        bad |= wrong(found_cr2 != wanted.address, "cr2", found_cr2);
    if (wanted.vector == DB_VECTOR)
        bad |= wrong((found_dr6 & (DR6_BS | DR6_B0)) != dr6_wanted(), "dr6", found_dr6);
    put_text(bad ? "\n" : " ok\n");
    return bad ? PROBE_WRONG : PROBE_RIGHT;
}

void probe_arm(const struct probe *p) { arm(p, 3); }

u32 probe_ring0(u32 number) {
    if (number >= (u32)(ring0_probes_end - ring0_probes))
        return PROBE_NO_MORE;
    arm(&ring0_probes[number], 0);
    ((void (*)(void))wanted.code)();
    return probe_done();
}
