/* The command line. The hypervisor's own words are taken out, the rest is the guest's. */
#include "hypervisor.h"

const char *const policy_names[] = {"all", "pf", "match"};
#define POLICIES (sizeof policy_names / sizeof policy_names[0])

struct options options = {.policy = POLICY_MATCH};

static bool starts(const char *text, const char *word) {
    while (*word)
        if (*text++ != *word++)
            return false;
    return true;
}

static bool same(const char *text, u32 length, const char *word) {
    u32 i = 0;
    while (i < length && word[i] && text[i] == word[i])
        i++;
    return i == length && !word[i];
}

static _Noreturn void refuse(const char *text, u32 length, const char *remedy) {
    static char word[64];
    if (length >= sizeof word)
        length = sizeof word - 1;
    memcpy(word, text, length);
    give_up("bad option '%s'; %s", word, remedy);
}

static void parse_exits(const char *text, u32 length, u32 key) {
    options.through_idt = same(text + key, length - key, "idt");
    if (!options.through_idt && !same(text + key, length - key, "entry"))
        refuse(text, length, "exits come to an entry point (exits=entry) or through the IDT (exits=idt)");
}

static void parse_policy(const char *text, u32 length, u32 key) {
    for (u32 i = 0; i < POLICIES; i++)
        if (same(text + key, length - key, policy_names[i])) {
            options.policy = (enum policy)i;
            return;
        }
    refuse(text, length, "valid policies: all, pf, match");
}

/* A number at *text, decimal or 0x..., up to `limit`; false if there is none. */
static bool number(const char **text, u32 limit, u32 *value) {
    u32 base = starts(*text, "0x") ? 16 : 10, digits = 0;
    *value = 0;
    if (base == 16)
        *text += 2;
    for (;; (*text)++, digits++) {
        u32 digit = (u32)**text - '0', letter = ((u32)**text | 0x20) - 'a';
        if (digit > 9)
            digit = letter < 6 ? letter + 10 : 16;
        if (digit >= base)
            return digits > 0;
        if (*value > (limit - digit) / base)
            return false;
        *value = *value * base + digit;
    }
}

static const char inject_remedy[] =
    "write inject=WHAT@EXIT[,WHAT@EXIT...]; WHAT: pf, gp, nmi, or a vector, perhaps with :ERROR";

/* A page fault is made to look like one that has nothing to it: an instruction fetch in
 * ring 3 from where the guest is fetching. The others come wherever the guest is. */
static bool parse_injection(const char **text) {
    struct injection *wanted = &options.injections[options.injection_count];
    u32 vector;
    if (options.injection_count == INJECTIONS)
        return false;
    if (starts(*text, "pf")) {
        *text += 2;
        vector = PF;
    } else if (starts(*text, "gp")) {
        *text += 2;
        vector = GP;
    } else if (starts(*text, "nmi")) {
        *text += 3;
        vector = NMI;
    } else if (!number(text, 255, &vector)) {
        return false;
    }
    wanted->event = vector | (vector == NMI  ? EVENT_NMI
                              : vector >= 32 ? EVENT_EXTERNAL
                                             : EVENT_EXCEPTION);
    if (has_error_code(vector))
        wanted->event |= EVENT_HAS_ERROR;
    wanted->user = vector == PF;
    wanted->error = vector == PF ? 5 : 0; /* P, U */
    if (**text == ':') {
        ++*text;
        if (!has_error_code(vector) || !number(text, 0x7FFF, &wanted->error))
            return false;
    }
    if (*(*text)++ != '@' || !number(text, 0xFFFFFFFF, &wanted->at) || wanted->at == 0)
        return false;
    options.injection_count++;
    return true;
}

static void parse_injections(const char *text, u32 length, u32 key) {
    const char *at = text + key;
    do {
        if (!parse_injection(&at))
            refuse(text, length, inject_remedy);
    } while (*at == ',' && ++at);
    if (at != text + length)
        refuse(text, length, inject_remedy);
}

void parse_options(const char *text) {
    u32 used = 0;
    while (*text) {
        u32 length = 0;
        while (text[length] && text[length] != ' ')
            length++;
        if (starts(text, "policy=")) {
            parse_policy(text, length, 7);
        } else if (starts(text, "exits=")) {
            parse_exits(text, length, 6);
        } else if (starts(text, "inject=")) {
            parse_injections(text, length, 7);
        } else {
            if (used + length + 2 > COMMAND_LINE)
                give_up("the command line is longer than %d bytes: shorten it", COMMAND_LINE);
            if (used > 0)
                options.guest_line[used++] = ' ';
            memcpy(options.guest_line + used, text, length);
            used += length;
        }
        text += length;
        while (*text == ' ')
            text++;
    }
}
