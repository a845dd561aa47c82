/* Memory blocks. The page functions are written with string instructions, as real
 * kernels do; gcc would compile a loop into a call of the function that contains it. */
#include "kernel.h"

void *memcpy(void *to, const void *from, __SIZE_TYPE__ count) {
    void *result = to;
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(count) : : "memory");
    return result;
}

void *memset(void *to, int byte, __SIZE_TYPE__ count) {
    void *result = to;
    __asm__ volatile("rep stosb" : "+D"(to), "+c"(count) : "a"(byte) : "memory");
    return result;
}

void page_copy(void *to, const void *from) {
    u32 count = PAGE_SIZE / 4;
    __asm__ volatile("rep movsl" : "+D"(to), "+S"(from), "+c"(count) : : "memory");
}

void page_clear(void *page) {
    u32 count = PAGE_SIZE / 4;
    __asm__ volatile("rep stosl" : "+D"(page), "+c"(count) : "a"(0) : "memory");
}
