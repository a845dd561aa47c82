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
