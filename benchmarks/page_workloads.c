/* What a kernel does to page tables, asked for by a program: map, protect, copy or move pages.
 *
 *   page_workloads map|protect|copy|move|fill ROUNDS PAGES
 *
 * `fill` asks for pages once and touches all of them in each round: with fewer in memory, to swap.
 *
 * Built by benchmarks/direct_paging.py: cc -static -O1, with -m32 for i386.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096 };

static void demand(int done, const char *what)
{
    if (!done) {
        perror(what);
        exit(1);
    }
}

static char *anonymous(size_t size)
{
    char *at = mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    demand(at != MAP_FAILED, "mmap");
    return at;
}

static void touch(char *at, size_t size)
{
    for (size_t n = 0; n < size; n += PAGE)
        at[n]++;
}

static void map(int rounds, size_t size)
{
    while (rounds--) {
        char *at = anonymous(size);
        touch(at, size);
        munmap(at, size);
    }
}

static void protect(int rounds, size_t size)
{
    char *at = anonymous(size);
    touch(at, size);
    while (rounds--) {
        demand(!mprotect(at, size, PROT_READ), "mprotect");
        demand(!mprotect(at, size, PROT_READ | PROT_WRITE), "mprotect");
        touch(at, size);
    }
}

static void copy(int rounds, size_t size)
{
    char *at = anonymous(size);
    touch(at, size);
    while (rounds--) {
        pid_t child = fork();
        demand(child >= 0, "fork");
        touch(at, size);
        if (!child)
            _exit(0);
        wait(0);
    }
}

static void move(int rounds, size_t size)
{
    char *at = anonymous(size);
    touch(at, size);
    while (rounds--) {
        char *to = anonymous(size);
        at = mremap(at, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, to);
        demand(at == to, "mremap");
    }
}

static void fill(int rounds, size_t size)
{
    char *at = anonymous(size);
    while (rounds--)
        touch(at, size);
}

int main(int count, char **argument)
{
    static const struct {
        const char *name;
        void (*run)(int, size_t);
    } workloads[] = {{"map", map}, {"protect", protect}, {"copy", copy}, {"move", move},
                     {"fill", fill}};

    for (size_t n = 0; count == 4 && n < sizeof workloads / sizeof *workloads; n++)
        if (!strcmp(argument[1], workloads[n].name)) {
            workloads[n].run(atoi(argument[2]), (size_t)atoi(argument[3]) * PAGE);
            return 0;
        }
    fprintf(stderr, "usage: %s map|protect|copy|move|fill ROUNDS PAGES\n", argument[0]);
    return 2;
}
