// When an init comes to which stage. See marks.go.

#define _GNU_SOURCE
#include "marks.h"

#include <fcntl.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static struct marks_slot *slots; // NULL in every process that is no init of a keeper
static struct marks_slot *own;
static int64_t at[MARKS_COUNT]; // each process that nsexec clones has a copy of those before it
static int clones;

static int64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

// In the first process of libcontainer's init, whose parent is the keeper; those that it clones inherit the mapping, and
// the container's command does not. Before libcontainer's own constructor, which does not return here.
__attribute__((constructor(199))) static void find_slots(int argc, char **argv)
{
	char path[64], target[64];
	struct stat st;
	ssize_t n;
	void *p;
	int fd;

	if (argc < 2 || strcmp(argv[1], "init") != 0)
		return;
	at[0] = now();
	snprintf(path, sizeof(path), "/proc/%d/fd/%d", (int)getppid(), MARKS_FD);
	// By its name: a parent without marks may have anything else there, and to open it may have consequences.
	n = readlink(path, target, sizeof(target));
	if (n < (ssize_t)strlen("/memfd:" MARKS_NAME) || memcmp(target, "/memfd:" MARKS_NAME, strlen("/memfd:" MARKS_NAME)) != 0)
		return;
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return;
	p = fstat(fd, &st) < 0 || st.st_size != MARKS_SIZE ? MAP_FAILED
		: mmap(NULL, MARKS_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	if (p != MAP_FAILED)
		slots = p;
}

// nsexec clones twice: when it has read what the keeper sends after it has put the process into the cgroup, and when it
// is in the namespaces.
int __real_clone(int (*f)(void *), void *stack, int flags, void *arg, ...);
int __wrap_clone(int (*f)(void *), void *stack, int flags, void *arg, ...)
{
	void *parent, *tls, *child;
	va_list more;

	va_start(more, arg);
	parent = va_arg(more, void *);
	tls = va_arg(more, void *);
	child = va_arg(more, void *);
	va_end(more);
	if (slots != NULL && clones < 2)
		at[1 + clones++] = now();
	return __real_clone(f, stack, flags, arg, parent, tls, child);
}

void marks_begin(uint32_t pid)
{
	if (slots == NULL)
		return;
	at[3] = now();
	own = &slots[pid % MARKS_SLOTS];
	__atomic_store_n(&own->pid, 0, __ATOMIC_SEQ_CST);
	memcpy(own->at, at, sizeof(at));
	__atomic_store_n(&own->pid, pid, __ATOMIC_SEQ_CST);
}

static void mark_once(int i)
{
	if (own != NULL && own->at[i] == 0)
		own->at[i] = now();
}

// Called by package filters when libcontainer begins a filter, and when it has added all rules.
void marks_seccomp(void)
{
	mark_once(4);
}

void marks_seccomp_export(void)
{
	mark_once(5);
}
