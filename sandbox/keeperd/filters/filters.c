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

// The calls of the filter that is being made. One at a time: more would only mean that none is found.
static struct {
	scmp_filter_ctx ctx;
	unsigned char *bytes;
	size_t len, cap;
	int lost; // something was not noted: this filter is not looked up
} calls;

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
	uint32_t numbers[] = { kind, (uint32_t)result, a, b, c };

	note(ctx, numbers, sizeof(numbers));
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
	ctx = __real_seccomp_init(action);
	calls.ctx = ctx;
	calls.len = 0;
	calls.lost = ctx == NULL;
	done(0, ctx, 'i', action, 0, 0);
	return ctx;
}

int __real_seccomp_arch_add(scmp_filter_ctx ctx, uint32_t arch);
int __wrap_seccomp_arch_add(scmp_filter_ctx ctx, uint32_t arch)
{
	return done(__real_seccomp_arch_add(ctx, arch), ctx, 'a', arch, 0, 0);
}

int __real_seccomp_attr_set(scmp_filter_ctx ctx, enum scmp_filter_attr attr, uint32_t value);
int __wrap_seccomp_attr_set(scmp_filter_ctx ctx, enum scmp_filter_attr attr, uint32_t value)
{
	return done(__real_seccomp_attr_set(ctx, attr, value), ctx, 's', attr, value, 0);
}

static int rule(int result, scmp_filter_ctx ctx, uint32_t kind, uint32_t action, int call, unsigned int n,
		const struct scmp_arg_cmp *args)
{
	unsigned int i;

	done(result, ctx, kind, action, (uint32_t)call, n);
	for (i = 0; i < n; i++) {
		uint64_t numbers[] = { args[i].arg, args[i].op, args[i].datum_a, args[i].datum_b };

		note(ctx, numbers, sizeof(numbers));
	}
	return result;
}

int __real_seccomp_rule_add_array(scmp_filter_ctx ctx, uint32_t action, int call, unsigned int n,
				  const struct scmp_arg_cmp *args);
int __wrap_seccomp_rule_add_array(scmp_filter_ctx ctx, uint32_t action, int call, unsigned int n,
				  const struct scmp_arg_cmp *args)
{
	return rule(__real_seccomp_rule_add_array(ctx, action, call, n, args), ctx, 'r', action, call, n, args);
}

int __real_seccomp_rule_add_exact_array(scmp_filter_ctx ctx, uint32_t action, int call, unsigned int n,
					const struct scmp_arg_cmp *args);
int __wrap_seccomp_rule_add_exact_array(scmp_filter_ctx ctx, uint32_t action, int call, unsigned int n,
					const struct scmp_arg_cmp *args)
{
	return rule(__real_seccomp_rule_add_exact_array(ctx, action, call, n, args), ctx, 'e', action, call, n, args);
}

static const struct entry *find(scmp_filter_ctx ctx)
{
	const unsigned char *base = (const unsigned char *)cache;
	uint32_t i, n;

	if (cache == NULL || calls.lost || ctx != calls.ctx)
		return NULL;
	n = __atomic_load_n(&cache->count, __ATOMIC_ACQUIRE);
	for (i = 0; i < n && i < FILTERS_MAX; i++) {
		const struct entry *e = &cache->entries[i];

		if ((uint64_t)e->offset + e->calls + e->program > FILTERS_SIZE)
			return NULL;
		if (e->calls == calls.len && memcmp(base + e->offset, calls.bytes, calls.len) == 0)
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
	if (e == NULL)
		return __real_seccomp_export_bpf(ctx, fd);
	return write_all(fd, (const unsigned char *)cache + e->offset + e->calls, e->program);
}
