/*
 * Tests the merge of page-fault filters on all small filters, and on random and
 * odd ones of 32 bits.
 */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

typedef uint32_t u32;
typedef uint64_t u64;

/* FUNCTION */

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
				printf("unsound: %u %u\n", i, j);
				return 1;
			}
			for (k = 0; k < FILTERS; k++) {
				u32 other = members(small_filter(k));

				if (!(want & ~other) && count(other) < count(got)) {
					printf("not the best: %u %u\n", i, j);
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
				printf("unsound: %u %x %x, %u %x %x: code %x\n", l0.eb_pf, l0.mask,
				       l0.match, l1.eb_pf, l1.mask, l1.match, code);
				return 1;
			}
		}
	}
	puts("ok");
	return 0;
}
