// What stands between libcontainer and libseccomp. See filters.go.

#define _GNU_SOURCE
#include "filters.h"

#include <fcntl.h>
#include <seccomp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

struct entry {
	uint32_t offset, calls, program, unused;
};

struct cache {
	uint64_t magic;
	uint32_t count, unused;
	struct entry entries[FILTERS_MAX];
};

static const struct cache *cache;

// The calls of the filter that is being made. There is one in a process: a second would find the first without its rules,
// and ends the process.
static struct {
	scmp_filter_ctx ctx;
	unsigned char *bytes;
	size_t len, cap;
	const struct entry *like; // a filter of the cache whose calls begin with these
	size_t owed;              // where the rules begin that were answered from the cache and have not been added
	int owing;
	int alone; // no filter of the cache begins with these
	int lost;  // something was not noted: this filter is not looked up
} calls;

// A call as it is noted. A rule is followed by its arguments.
struct call {
	uint32_t kind, result, a, b, c;
};

struct argument {
	uint64_t arg, op, datum_a, datum_b;
};

#define ARGUMENTS_MAX 6 // of a system call

static int record_fd = -1;

void filters_record(int fd)
{
	record_fd = fd;
}

static void map_cache(const char *path)
{
	struct stat st;
	void *p;
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return;
	if (fstat(fd, &st) < 0 || st.st_size != FILTERS_SIZE) {
		close(fd);
		return;
	}
	p = mmap(NULL, FILTERS_SIZE, PROT_READ, MAP_SHARED, fd, 0);
	close(fd);
	if (p == MAP_FAILED)
		return;
	if (((const struct cache *)p)->magic != FILTERS_MAGIC) {
		munmap(p, FILTERS_SIZE);
		return;
	}
	cache = p;
}

// In the first process of libcontainer's init, whose parent is the keeper: those that it clones inherit the mapping, and
// the container's command does not. Before libcontainer's own constructor, which does not return here.
__attribute__((constructor(200))) static void find_cache(int argc, char **argv)
{
	char path[64], target[64];
	ssize_t n;

	if (argc < 2 || strcmp(argv[1], "init") != 0)
		return;
	snprintf(path, sizeof(path), "/proc/%d/fd/%d", (int)getppid(), FILTERS_FD);
	// By its name: a parent without a cache may have anything else there, and to open it may have consequences.
	n = readlink(path, target, sizeof(target));
	if (n < (ssize_t)strlen("/memfd:" FILTERS_NAME) || memcmp(target, "/memfd:" FILTERS_NAME, strlen("/memfd:" FILTERS_NAME)) != 0)
		return;
	map_cache(path);
}

static void note(scmp_filter_ctx ctx, const void *p, size_t n)
{
	if (ctx != calls.ctx)
		calls.lost = 1;
	if (calls.lost)
		return;
	if (calls.len + n > calls.cap) {
		size_t cap = 2 * calls.cap + n + 4096;
		unsigned char *bytes = realloc(calls.bytes, cap);

		if (bytes == NULL) {
			calls.lost = 1;
			return;
		}
		calls.bytes = bytes;
		calls.cap = cap;
	}
	memcpy(calls.bytes + calls.len, p, n);
	calls.len += n;
}

// done notes the kind of a call with its numbers and its result: what fails here, such as an attribute that this kernel
// does not have, fails the same way every time.
static int done(int result, scmp_filter_ctx ctx, uint32_t kind, uint32_t a, uint32_t b, uint32_t c)
{
	struct call call = { kind, (uint32_t)result, a, b, c };

	note(ctx, &call, sizeof(call));
	return result;
}

// Package marks notes when libcontainer begins a filter and when it has added all rules, in a program that has it.
void marks_seccomp(void) __attribute__((weak));
void marks_seccomp_export(void) __attribute__((weak));

scmp_filter_ctx __real_seccomp_init(uint32_t action);
scmp_filter_ctx __wrap_seccomp_init(uint32_t action)
{
	scmp_filter_ctx ctx;

	if (marks_seccomp != NULL)
		marks_seccomp();
	if (calls.owing)
		abort(); // a filter before this one would lack rules
	ctx = __real_seccomp_init(action);
	calls.ctx = ctx;
	calls.len = 0;
	calls.like = NULL;
	calls.owing = calls.alone = 0;
	calls.lost = ctx == NULL;
	done(0, ctx, 'i', action, 0, 0);
	return ctx;
}

int __real_seccomp_rule_add_array(scmp_filter_ctx ctx, uint32_t action, int call, unsigned int n,
				  const struct scmp_arg_cmp *args);
int __real_seccomp_rule_add_exact_array(scmp_filter_ctx ctx, uint32_t action, int call, unsigned int n,
					const struct scmp_arg_cmp *args);

static int add(scmp_filter_ctx ctx, uint32_t kind, uint32_t action, int call, unsigned int n, const struct scmp_arg_cmp *args)
{
	if (kind == 'e')
		return __real_seccomp_rule_add_exact_array(ctx, action, call, n, args);
	return __real_seccomp_rule_add_array(ctx, action, call, n, args);
}

// settle adds the rules that were only answered so far: the filter turns out to be none of the cache, or something else
// than its program is asked for. The same calls have the same results. Should they ever not (no memory), then the caller
// was told what is not true, and this process must not become a container.
static void settle(scmp_filter_ctx ctx)
{
	const unsigned char *at = calls.bytes + calls.owed, *end = calls.bytes + calls.len;

	if (!calls.owing || ctx != calls.ctx)
		return;
	calls.owing = 0;
	while (at < end) {
		struct scmp_arg_cmp args[ARGUMENTS_MAX];
		struct argument arg;
		struct call c;
		uint32_t i;

		memcpy(&c, at, sizeof(c));
		at += sizeof(c);
		for (i = 0; i < c.c; i++, at += sizeof(arg)) {
			memcpy(&arg, at, sizeof(arg));
			args[i] = (struct scmp_arg_cmp){ arg.arg, arg.op, arg.datum_a, arg.datum_b };
		}
		if ((uint32_t)add(ctx, c.kind, c.a, (int)c.b, c.c, args) != c.result)
			abort();
	}
}

static int whole(const struct entry *e)
{
	return (uint64_t)e->offset + e->calls + e->program <= FILTERS_SIZE;
}

// continues says whether the calls of e go on with c after those made so far, and with which result.
static int continues(const struct entry *e, struct call *c, const struct argument *args)
{
	const unsigned char *known = (const unsigned char *)cache + e->offset;
	size_t size = c->c * sizeof(*args);
	struct call next;

	if (!whole(e) || e->calls < calls.len + sizeof(next) + size)
		return 0;
	if (e != calls.like && memcmp(known, calls.bytes, calls.len) != 0)
		return 0;
	known += calls.len;
	memcpy(&next, known, sizeof(next));
	if (next.kind != c->kind || next.a != c->a || next.b != c->b || next.c != c->c)
		return 0;
	c->result = next.result;
	return memcmp(known + sizeof(next), args, size) == 0;
}

static uint32_t cached(void)
{
	uint32_t n = cache == NULL ? 0 : __atomic_load_n(&cache->count, __ATOMIC_ACQUIRE);

	return n < FILTERS_MAX ? n : FILTERS_MAX;
}

// answer finds the result of a rule in the cache. To add it would be work for nothing: the program is known.
static int answer(struct call *c, const struct argument *args)
{
	uint32_t i, n = cached();

	if (calls.alone)
		return 0;
	if (calls.like != NULL && continues(calls.like, c, args))
		return 1;
	for (i = 0; i < n; i++)
		if (continues(&cache->entries[i], c, args)) {
			calls.like = &cache->entries[i];
			return 1;
		}
	calls.alone = 1;
	return 0;
}

static int rule(scmp_filter_ctx ctx, uint32_t kind, uint32_t action, int call, unsigned int n, const struct scmp_arg_cmp *args)
{
	struct call c = { kind, 0, action, (uint32_t)call, n };
	struct argument copies[ARGUMENTS_MAX];
	unsigned int i;

	if (ctx != calls.ctx || n > ARGUMENTS_MAX) {
		settle(ctx);
		calls.lost = 1;
	}
	if (calls.lost)
		return add(ctx, kind, action, call, n, args);
	for (i = 0; i < n; i++)
		copies[i] = (struct argument){ args[i].arg, args[i].op, args[i].datum_a, args[i].datum_b };
	if (answer(&c, copies)) {
		if (!calls.owing)
			calls.owed = calls.len;
		calls.owing = 1;
	} else {
		settle(ctx);
		c.result = (uint32_t)add(ctx, kind, action, call, n, args);
	}
	note(ctx, &c, sizeof(c));
	note(ctx, copies, n * sizeof(*copies));
	if (calls.lost && calls.owing)
		abort(); // answered, but not noted: it could not be added any more
	return (int)c.result;
}

int __wrap_seccomp_rule_add_array(scmp_filter_ctx ctx, uint32_t action, int call, unsigned int n,
				  const struct scmp_arg_cmp *args)
{
	return rule(ctx, 'r', action, call, n, args);
}

int __wrap_seccomp_rule_add_exact_array(scmp_filter_ctx ctx, uint32_t action, int call, unsigned int n,
					const struct scmp_arg_cmp *args)
{
	return rule(ctx, 'e', action, call, n, args);
}

int __real_seccomp_arch_add(scmp_filter_ctx ctx, uint32_t arch);
int __wrap_seccomp_arch_add(scmp_filter_ctx ctx, uint32_t arch)
{
	settle(ctx);
	return done(__real_seccomp_arch_add(ctx, arch), ctx, 'a', arch, 0, 0);
}

int __real_seccomp_attr_set(scmp_filter_ctx ctx, enum scmp_filter_attr attr, uint32_t value);
int __wrap_seccomp_attr_set(scmp_filter_ctx ctx, enum scmp_filter_attr attr, uint32_t value)
{
	settle(ctx);
	return done(__real_seccomp_attr_set(ctx, attr, value), ctx, 's', attr, value, 0);
}

// What else reads or changes a filter. libcontainer uses none of it.
#define WRAP(name, parameters, arguments)       \
	int __real_##name parameters;           \
	int __wrap_##name parameters            \
	{                                       \
		settle(ctx);                    \
		calls.lost = 1;                 \
		return __real_##name arguments; \
	}

WRAP(seccomp_load, (const scmp_filter_ctx ctx), (ctx))
WRAP(seccomp_export_pfc, (const scmp_filter_ctx ctx, int fd), (ctx, fd))
WRAP(seccomp_reset, (scmp_filter_ctx ctx, uint32_t action), (ctx, action))
WRAP(seccomp_arch_remove, (scmp_filter_ctx ctx, uint32_t arch), (ctx, arch))
WRAP(seccomp_syscall_priority, (scmp_filter_ctx ctx, int call, uint8_t priority), (ctx, call, priority))

int __real_seccomp_merge(scmp_filter_ctx to, scmp_filter_ctx from);
int __wrap_seccomp_merge(scmp_filter_ctx to, scmp_filter_ctx from)
{
	settle(to);
	settle(from);
	calls.lost = 1;
	return __real_seccomp_merge(to, from);
}

static const struct entry *find(scmp_filter_ctx ctx)
{
	uint32_t i, n = cached();

	if (calls.lost || ctx != calls.ctx)
		return NULL;
	for (i = 0; i < n; i++) {
		const struct entry *e = &cache->entries[i];

		if (whole(e) && e->calls == calls.len &&
		    memcmp((const unsigned char *)cache + e->offset, calls.bytes, calls.len) == 0)
			return e;
	}
	return NULL;
}

static int write_all(int fd, const void *p, size_t n)
{
	const char *from = p;

	while (n > 0) {
		ssize_t written = write(fd, from, n);

		if (written <= 0)
			return -1;
		from += written;
		n -= written;
	}
	return 0;
}

int __real_seccomp_export_bpf(scmp_filter_ctx ctx, int fd);

static void record(scmp_filter_ctx ctx)
{
	uint32_t len = calls.len;

	if (calls.lost || ctx != calls.ctx)
		_exit(1);
	if (write_all(record_fd, &len, sizeof(len)) < 0 || write_all(record_fd, calls.bytes, len) < 0)
		_exit(1);
	_exit(__real_seccomp_export_bpf(ctx, record_fd) != 0);
}

int __wrap_seccomp_export_bpf(scmp_filter_ctx ctx, int fd)
{
	const struct entry *e;

	if (marks_seccomp_export != NULL)
		marks_seccomp_export();
	if (record_fd >= 0)
		record(ctx);
	e = find(ctx);
	if (e == NULL) {
		settle(ctx);
		return __real_seccomp_export_bpf(ctx, fd);
	}
	return write_all(fd, (const unsigned char *)cache + e->offset + e->calls, e->program);
}
