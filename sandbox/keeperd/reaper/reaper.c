// The parent of a keeper, and of its children once it is dead. See reaper.go.
//
// The constructor forks before any other constructor and before the Go runtime, so that the reaper, which is the
// process that was spawned, has one thread and next to no memory of its own.

#define _GNU_SOURCE
#include "reaper.h"

#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define MARKER "_GANTRY_REAPER"
#define NAME "gantry-reaper"

static pid_t reaper;

pid_t reaper_pid(void)
{
	return reaper;
}

// start_time reads it, of a zombie too; 0 if it cannot.
static uint64_t start_time(pid_t pid)
{
	char text[1024], *p;
	int fd, field;
	ssize_t n;

	snprintf(text, sizeof(text), "/proc/%d/stat", (int)pid);
	fd = open(text, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return 0;
	n = read(fd, text, sizeof(text) - 1);
	close(fd);
	if (n <= 0)
		return 0;
	text[n] = '\0';
	// The second field is the name in parentheses, which may contain anything.
	p = strrchr(text, ')');
	for (field = 2; p != NULL && field < 22; field++)
		p = strchr(p + 1, ' ');
	return p != NULL ? strtoull(p, NULL, 10) : 0;
}

static uint32_t wait_status(const siginfo_t *info)
{
	switch (info->si_code) {
	case CLD_EXITED:
		return (uint32_t)(info->si_status & 0xff) << 8;
	case CLD_DUMPED:
		return (uint32_t)info->si_status | 0x80;
	default:
		return (uint32_t)info->si_status;
	}
}

// note writes down how an orphan ended. The file is the keeper's to make: after a clean end of one there is none.
static void note(const char *file, const siginfo_t *info)
{
	struct end end = { (uint32_t)info->si_pid, wait_status(info), start_time(info->si_pid) };
	int fd = open(file, O_WRONLY | O_NOFOLLOW | O_CLOEXEC);

	if (fd < 0)
		return;
	if (pwrite(fd, &end, sizeof(end), (off_t)(end.pid % END_SLOTS) * (off_t)sizeof(end)) < 0) {
		// Nobody is there to be told; the code is lost then.
	}
	close(fd);
}

// slim gives back the program's pages that starting the C library has touched; what is needed again comes again.
static int slim(struct dl_phdr_info *info, size_t size, void *data)
{
	uintptr_t within = (uintptr_t)sysconf(_SC_PAGESIZE) - 1;
	int i;

	(void)size;
	(void)data;
	for (i = 0; i < info->dlpi_phnum; i++) {
		const ElfW(Phdr) *p = &info->dlpi_phdr[i];
		uintptr_t start = info->dlpi_addr + p->p_vaddr;

		if (p->p_type == PT_LOAD && !(p->p_flags & PF_W))
			madvise((void *)(start & ~within), p->p_memsz + (start & within), MADV_DONTNEED);
	}
	return 1; // the program is the first
}

// settle makes the process a reaper. Nothing but SIGKILL ends it from now on, and like the keeper it is the last to be
// killed for memory. At last it lets go of what is the keeper's: its log, its ready pipe.
static void settle(int argc, char **argv)
{
	size_t room = (size_t)(argv[argc - 1] + strlen(argv[argc - 1]) + 1 - argv[0]);
	sigset_t all;
	int fd;

	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, NULL);
	// So that who looks for the keeper, by its name or by its command line, finds one.
	prctl(PR_SET_NAME, NAME, 0, 0, 0);
	memset(argv[0], 0, room);
	strncpy(argv[0], NAME, room - 1);
	fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
	if (fd >= 0 && write(fd, "-999", 4) < 0) {
		// A node without the right to it: as the keeper's.
	}
	dl_iterate_phdr(slim, NULL);
	if (syscall(SYS_close_range, 0, ~0U, 0) < 0) // before 5.9
		for (fd = 0; fd < 1024; fd++)
			close(fd);
}

// reap waits for the keeper, and then for all that was its, and ends as the keeper did. An end is noted before the
// process is reaped: so whoever finds no process any more finds the note.
__attribute__((noreturn)) static void reap(pid_t keeper, const char *file)
{
	siginfo_t info;
	int code = 1;

	for (;;) {
		if (waitid(P_ALL, 0, &info, WEXITED | WNOWAIT) < 0) {
			if (errno == EINTR)
				continue;
			_exit(code); // ECHILD
		}
		if (info.si_pid == keeper) {
			code = info.si_code == CLD_EXITED ? info.si_status : 128 + info.si_status;
			keeper = 0; // an orphan may get the number
		} else {
			note(file, &info);
		}
		waitid(P_PID, info.si_pid, &info, WEXITED);
	}
}

__attribute__((constructor(101))) static void fork_reaper(int argc, char **argv)
{
	const char *file = getenv(MARKER);
	pid_t self = getpid(), keeper;
	int ready[2];
	char byte;

	if (file == NULL || argc < 1)
		return;
	unsetenv(MARKER); // in place: Go's runtime reads the same list later
	if (pipe(ready) < 0)
		return;
	signal(SIGCHLD, SIG_DFL); // ignored, it would have the kernel reap
	prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
	keeper = fork();
	if (keeper > 0) {
		settle(argc, argv);
		reap(keeper, file);
	}
	close(ready[1]);
	if (keeper == 0) {
		// The keeper begins when its reaper is one, which closes all that it has then.
		if (read(ready[0], &byte, 1) == 0)
			reaper = self;
	}
	close(ready[0]); // without a process for a reaper the keeper does without
}
