// The process that becomes a command in a running container. See stage.go.
//
// The linker makes gantrystart the entry point of the binary. A process with the stage's name never comes further: no C
// library is initialised, no Go runtime starts. So nothing here may call the C library, not even by a compiler that
// recognises a loop as memset: hence the pragma. Every other process goes on to the C library's own entry point.
//
// What the steps do is what libcontainer's setns init does, and so is their order, but for this: the labels are set and
// all descriptors of the host's closed before any path of the container is looked up but that of its terminals.

#define _GNU_SOURCE
#include "stage.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/keyctl.h>
#include <linux/magic.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>

#pragma GCC optimize("no-tree-loop-distribute-patterns")

#include "machine.h"

static struct request *request;
static char **args, **env;
static int proc_fd = -1; // the host's /proc, open while a label has to be set
static char path[2 * PATH_MAX];
static char home[PATH_MAX] = "HOME=";
static char page[8192];

// outcome is written by the child, which shares the memory, and told by the parent.
static struct frame outcome;
static const char *outcome_detail = "";

static void *at(uint32_t offset) { return (char *)request + offset; }

static size_t length(const char *s)
{
	size_t n = 0;

	while (s[n] != '\0')
		n++;
	return n;
}

static int begins(const char *s, const char *prefix)
{
	while (*prefix != '\0')
		if (*s++ != *prefix++)
			return 0;
	return 1;
}

__attribute__((noreturn)) static void leave(int code)
{
	for (;;)
		sys(SYS_exit_group, code);
}

static void tell(const void *data, size_t size)
{
	long n;

	for (; size > 0; data = (const char *)data + n, size -= n) {
		n = sys(SYS_sendto, SOCKET_FD, data, size, MSG_NOSIGNAL, 0);
		if (n <= 0)
			leave(2);
	}
}

// report says how it ended. detail is cut to what the other side takes.
__attribute__((noreturn)) static void report(void)
{
	size_t n = length(outcome_detail);

	if (outcome.step == STEP_NONE)
		n = 0;
	outcome.detail = n < PATH_MAX ? n : PATH_MAX;
	tell(&outcome, sizeof(outcome));
	tell(outcome_detail, outcome.detail);
	leave(0);
}

static void note(int step, long error)
{
	outcome.step = step;
	outcome.error = -error;
}

// must is for the parent.
static void must(int step, long result)
{
	if (result >= 0)
		return;
	note(step, result);
	report();
}

// need is for the child, which ends here; its parent goes on then.
static void need(int step, long result)
{
	if (result >= 0)
		return;
	note(step, result);
	leave(1);
}

static void *allocate(size_t size)
{
	long n = sys(SYS_mmap, 0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	must(STEP_REQUEST, n < 0 && n > -4096 ? n : 0);
	return (void *)n;
}

// receive reads the request into memory of its own.
static void receive(void)
{
	uint32_t size = 0, have = 0;
	long n;

	n = sys(SYS_recvfrom, SOCKET_FD, &size, sizeof(size), MSG_PEEK | MSG_WAITALL, 0);
	if (n != sizeof(size) || size < sizeof(struct request))
		leave(2);
	request = allocate(size);
	for (; have < size; have += n) {
		n = sys(SYS_recvfrom, SOCKET_FD, (char *)request + have, size - have, 0, 0);
		if (n <= 0)
			leave(2);
	}
}

static long write_file(int dir, const char *file, const char *text)
{
	long n, fd = sys(SYS_openat, dir, file, O_WRONLY | O_CLOEXEC);

	if (fd < 0)
		return fd;
	n = sys(SYS_write, fd, text, length(text));
	sys(SYS_close, fd);
	return n;
}

// enter_cgroups enters those of version 1. A process that writes of itself, by the file for single tasks, does not wait
// for an RCU grace period (12 ms after some quiet), and no fork on the machine waits for it.
static void enter_cgroups(void)
{
	const char *file = at(request->cgroups);
	uint32_t i;

	for (i = 0; i < request->cgroup_count; i++, file += length(file) + 1) {
		outcome_detail = file;
		must(STEP_CGROUP, write_file(AT_FDCWD, file, "0"));
	}
	outcome_detail = "";
}

// set_limits sets what only a process with the host's privileges can set: the OOM score before the process is not
// dumpable, the limits before it is in a user namespace.
static void set_limits(void)
{
	const uint64_t *limit = at(request->rlimits);
	uint32_t i;

	// As the processor affinity of the keeper is nothing to the container; the kernel takes what the cgroup allows.
	for (i = 0; i < 1024; i++)
		page[i] = -1;
	sys(SYS_sched_setaffinity, 0, 1024, page);
	if (request->oom_score != 0)
		must(STEP_OOM_SCORE, write_file(AT_FDCWD, "/proc/self/oom_score_adj", at(request->oom_score)));
	for (i = 0; i < request->rlimit_count; i++, limit += 3) {
		outcome.arg = limit[0];
		must(STEP_RLIMIT, sys(SYS_prlimit64, 0, limit[0], limit + 1, 0));
	}
}

// enter_namespaces joins those of the container's init, all or none. In another user namespace the process is nobody at
// first, with every right there.
static void enter_namespaces(void)
{
	must(STEP_NAMESPACES, sys(SYS_setns, INIT_FD, request->namespaces));
	sys(SYS_close, INIT_FD);
	must(STEP_ROOT, sys(SYS_setgroups, 0, 0));
	must(STEP_ROOT, sys(SYS_setresgid, 0, 0, 0));
	must(STEP_ROOT, sys(SYS_setresuid, 0, 0, 0));
}

static void join_keyring(void)
{
	long n;

	if (request->keyring == 0)
		return;
	if (request->label != 0) {
		n = write_file(proc_fd, "thread-self/attr/keycreate", at(request->label));
		need(STEP_KEY_LABEL, n == -ENOENT ? 0 : n);
	}
	n = sys(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, at(request->keyring));
	need(STEP_KEYRING, n == -ENOSYS ? 0 : n);
}

static void send_master(int fd)
{
	struct frame frame = { .step = STEP_MASTER };
	struct iovec data = { &frame, sizeof(frame) };
	union {
		struct cmsghdr header;
		char room[CMSG_SPACE(sizeof(int))];
	} control;
	struct msghdr message = { .msg_iov = &data, .msg_iovlen = 1, .msg_control = &control,
				  .msg_controllen = sizeof(control) };

	control.header.cmsg_level = SOL_SOCKET;
	control.header.cmsg_type = SCM_RIGHTS;
	control.header.cmsg_len = CMSG_LEN(sizeof(int));
	*(int *)CMSG_DATA(&control.header) = fd;
	need(STEP_TERMINAL, sys(SYS_sendmsg, SOCKET_FD, &message, MSG_NOSIGNAL));
}

// is_ptmx checks that the file is what the kernel makes new terminals with, whatever the container has put in its place.
static int is_ptmx(int fd)
{
	struct stat st;
	struct statfs fs;

	if (sys(SYS_fstat, fd, &st) < 0 || sys(SYS_fstatfs, fd, &fs) < 0)
		return 0;
	return fs.f_type == DEVPTS_SUPER_MAGIC && st.st_ino == 2 && S_ISCHR(st.st_mode) && st.st_rdev == makedev(5, 2);
}

static void make_terminal(void)
{
	int i, unlock = 0;
	long peer, master;

	if (!(request->flags & FLAG_TERMINAL))
		return;
	master = sys(SYS_openat, AT_FDCWD, "/dev/pts/ptmx", O_RDWR | O_NOCTTY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	need(STEP_TERMINAL, master);
	need(STEP_TERMINAL, is_ptmx(master) ? 0 : -ENODEV);
	need(STEP_TERMINAL, sys(SYS_ioctl, master, TIOCSPTLCK, &unlock));
	peer = sys(SYS_ioctl, master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
	need(STEP_TERMINAL, peer);
	send_master(master);
	for (i = 0; i < 3; i++)
		need(STEP_TERMINAL, sys(SYS_dup3, peer, i, 0));
	sys(SYS_close, peer);
	sys(SYS_close, master);
	need(STEP_TERMINAL, sys(SYS_ioctl, 0, TIOCSCTTY, 0));
}

static void load_seccomp(int no_new_privs)
{
	struct sock_fprog program = { request->seccomp_count, at(request->seccomp) };

	if (!(request->flags & FLAG_SECCOMP) || ((request->flags & FLAG_NO_NEW_PRIVS) != 0) != no_new_privs)
		return;
	if (request->seccomp_flags == 0)
		need(STEP_SECCOMP, sys(SYS_prctl, PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program));
	else
		need(STEP_SECCOMP, sys(SYS_seccomp, SECCOMP_SET_MODE_FILTER, request->seccomp_flags, &program));
}

#define PASSWD_MAX (16 << 20)

// find_home completes the environment from a passwd file: name, password, uid, gid, comment, home, shell.
static void find_home(void)
{
	char *const value = home + 5;
	uint64_t uid = 0;
	long i, n, fd, left = PASSWD_MAX;
	int field = 0, number = 1, out = 0;

	if (!(request->flags & FLAG_HOME))
		return;
	value[0] = '/';
	fd = sys(SYS_openat, AT_FDCWD, "/etc/passwd", O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
	if (fd < 0)
		return;
	// The container may have put a file there that does not end.
	for (; left > 0 && (n = sys(SYS_read, fd, page, sizeof(page))) > 0; left -= n)
		for (i = 0; i < n; i++) {
			char c = page[i];

			if (c == '\n') {
				if (field >= 2 && number == 2 && uid == request->uid)
					goto found;
				field = out = uid = 0;
				number = 1;
			} else if (c == ':') {
				field++;
			} else if (field == 2) {
				// 1: no digit yet, 2: a number, 0: something else.
				if (c < '0' || c > '9' || uid > UINT32_MAX)
					number = 0;
				if (number != 0) {
					number = 2;
					uid = 10 * uid + (c - '0');
				}
			} else if (field == 5 && number == 2 && uid == request->uid && out < PATH_MAX - 7) {
				value[out++] = c;
			}
		}
	if (left <= 0 || field < 2 || number != 2 || uid != request->uid) {
		value[0] = '/';
		out = 1;
	}
found:
	value[out] = '\0';
	sys(SYS_close, fd);
}

static void drop_bounding(void)
{
	struct __user_cap_header_struct header = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct have[2];
	long cap;

	if (!(request->flags & FLAG_CAPABILITIES))
		return;
	need(STEP_BOUNDING, sys(SYS_capget, &header, have));
	if (!(have[0].effective & (1 << CAP_SETPCAP)))
		return;
	for (cap = 0; cap < 64 && sys(SYS_prctl, PR_CAPBSET_READ, cap) >= 0; cap++)
		if (!(request->bounding >> cap & 1))
			need(STEP_BOUNDING, sys(SYS_prctl, PR_CAPBSET_DROP, cap));
}

static void set_capabilities(void)
{
	struct __user_cap_header_struct header = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct set[2];
	int i;

	if (!(request->flags & FLAG_CAPABILITIES))
		return;
	for (i = 0; i < 2; i++) {
		set[i].effective = request->effective >> 32 * i;
		set[i].permitted = request->permitted >> 32 * i;
		set[i].inheritable = request->inheritable >> 32 * i;
	}
	need(STEP_CAPABILITIES, sys(SYS_capset, &header, set));
	sys(SYS_prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL);
	// One that is not permitted and inheritable cannot be raised; libcontainer passes over it too.
	for (i = 0; i < 64; i++)
		if (request->ambient >> i & 1)
			sys(SYS_prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, i);
}

// own_streams gives the streams to the user, so that a program may open /dev/stdout.
static void own_streams(void)
{
	struct stat st;
	int fd;
	long n;

	for (fd = 0; fd < 3; fd++) {
		need(STEP_STREAMS, sys(SYS_fstat, fd, &st));
		if (st.st_uid == request->uid || (S_ISCHR(st.st_mode) && st.st_rdev == makedev(1, 3)))
			continue;
		n = sys(SYS_fchown, fd, request->uid, -1);
		need(STEP_STREAMS, n == -EPERM || n == -EROFS ? 0 : n);
	}
}

static void become_user(void)
{
	const char *cwd = at(request->cwd);
	long n = sys(SYS_chdir, cwd);

	outcome_detail = cwd;
	// EACCES: a directory that only the user may enter.
	need(STEP_CWD, n == -EACCES || n == -EPERM ? 0 : n);
	find_home();
	drop_bounding();
	need(STEP_KEEP_CAPS, sys(SYS_prctl, PR_SET_KEEPCAPS, 1));
	own_streams();
	need(STEP_GROUPS, sys(SYS_setgroups, request->group_count, at(request->groups)));
	need(STEP_GID, sys(SYS_setgid, request->gid));
	need(STEP_UID, sys(SYS_setuid, request->uid));
	if (n < 0)
		need(STEP_CWD, sys(SYS_chdir, cwd));
	// "(unreachable)" is how the kernel begins a directory that is not below the root: CVE-2024-21626.
	need(STEP_CWD_OUTSIDE, sys(SYS_getcwd, page, sizeof(page)));
	need(STEP_CWD_OUTSIDE, page[0] == '/' ? 0 : -ENOENT);
	need(STEP_KEEP_CAPS, sys(SYS_prctl, PR_SET_KEEPCAPS, 0));
	set_capabilities();
}

static void set_apparmor(void)
{
	static const char verb[] = "exec ";
	const char *profile = at(request->apparmor);
	size_t n = length(profile), i;
	long result;

	if (request->apparmor == 0)
		return;
	need(STEP_APPARMOR, n < sizeof(page) - sizeof(verb) ? 0 : -ENAMETOOLONG);
	for (i = 0; i < sizeof(verb) - 1; i++)
		page[i] = verb[i];
	for (n = 0; profile[n] != '\0'; n++)
		page[i + n] = profile[n];
	page[i + n] = '\0';
	result = write_file(proc_fd, "thread-self/attr/apparmor/exec", page);
	if (result == -ENOENT)
		result = write_file(proc_fd, "thread-self/attr/exec", page);
	need(STEP_APPARMOR, result);
}

// try_executable returns 0, or the error, whose step it notes.
static long try_executable(const char *file)
{
	struct stat st;
	long n = sys(SYS_newfstatat, AT_FDCWD, file, &st, 0);

	outcome.step = STEP_STAT;
	if (n < 0)
		return n;
	outcome.step = STEP_ACCESS;
	if (S_ISDIR(st.st_mode))
		return -EISDIR;
	n = sys(SYS_faccessat2, AT_FDCWD, file, 1 /* X_OK */, AT_EACCESS);
	if (n == -ENOSYS || n == -EPERM) // a seccomp filter says so
		return st.st_mode & 0111 ? 0 : -EACCES;
	return n;
}

// candidate puts together a directory of PATH, dir up to end, and a name.
static int candidate(const char *dir, const char *end, const char *name)
{
	size_t n = 0;

	if (dir == end)
		path[n++] = '.';
	if ((size_t)(end - dir) + length(name) + 3 > sizeof(path))
		return 0;
	while (dir < end)
		path[n++] = *dir++;
	if (path[n - 1] != '/')
		path[n++] = '/';
	do
		path[n++] = *name;
	while (*name++ != '\0');
	return 1;
}

// find_command returns what is to be executed, found as os/exec finds it.
static const char *find_command(const char *name)
{
	const char *dir = NULL, *end;
	uint32_t i;

	for (end = name; *end != '\0'; end++)
		if (*end == '/') {
			long n = try_executable(name);

			need(outcome.step, n);
			return name;
		}
	for (i = 0; env[i] != NULL; i++)
		if (begins(env[i], "PATH="))
			dir = env[i] + 5;
	need(STEP_NOT_FOUND, dir != NULL && *dir != '\0' ? 0 : -ENOENT);
	for (;; dir = end + 1) {
		for (end = dir; *end != '\0' && *end != ':'; end++)
			;
		if (candidate(dir, end, name) && try_executable(path) == 0) {
			need(STEP_RELATIVE, path[0] == '/' ? 0 : -ENOENT);
			return path;
		}
		need(STEP_NOT_FOUND, *end != '\0' ? 0 : -ENOENT);
	}
}

// list makes an argument list of counted strings, with room for one more.
static char **list(uint32_t offset, uint32_t count)
{
	char *s = at(offset), **strings = allocate((count + 2) * sizeof(char *));
	uint32_t i;

	for (i = 0; i < count; i++, s += length(s) + 1)
		strings[i] = s;
	return strings;
}

__attribute__((noreturn, noinline)) static void become_command(void)
{
	const char *command;

	need(STEP_SESSION, sys(SYS_setsid));
	join_keyring();
	make_terminal();
	if (request->flags & FLAG_NO_NEW_PRIVS)
		need(STEP_NO_NEW_PRIVS, sys(SYS_prctl, PR_SET_NO_NEW_PRIVS, 1));
	if (request->flags & FLAG_UMASK)
		sys(SYS_umask, request->umask);
	if (request->label != 0)
		need(STEP_EXEC_LABEL, write_file(proc_fd, "thread-self/attr/exec", at(request->label)));
	set_apparmor();
	// Closed and not only marked to be: the working directory and the command's own path may lead through /proc/self/fd
	// (CVE-2024-21626), and a lookup takes as long as the container likes. Before a filter, which may not know the call.
	need(STEP_CLOSE, sys(SYS_close_range, 3, ~0U, 0));
	load_seccomp(0);
	become_user();
	if (request->flags & FLAG_HOME)
		env[request->env_count] = home;
	command = find_command(args[0]);
	outcome.step = STEP_NONE;
	load_seccomp(1);
	outcome_detail = command;
	need(STEP_EXEC, sys(SYS_execve, command, args, env));
	leave(1);
}

// enter_container ends with a child that is in the container.
__attribute__((noreturn, noinline)) static void enter_container(void)
{
	long pid;

	enter_cgroups();
	set_limits();
	if (request->label != 0 || request->apparmor != 0) {
		proc_fd = sys(SYS_openat, AT_FDCWD, "/proc", O_PATH | O_DIRECTORY | O_CLOEXEC);
		must(STEP_PROC, proc_fd);
	}
	// Before anything of the container can look at the process: its memory and files are the host's still.
	must(STEP_DUMPABLE, sys(SYS_prctl, PR_SET_DUMPABLE, 0));
	enter_namespaces();
	// The child is in the PID namespace and the keeper's, not ours. It has our memory until it executes, so that
	// nothing is copied and the parent learns what went wrong.
	pid = sys(SYS_clone, CLONE_PARENT | CLONE_VM | CLONE_VFORK | SIGCHLD, 0, 0, 0, 0);
	if (pid == 0)
		become_command();
	must(STEP_FORK, pid);
	outcome.pid = pid;
	report();
}

__attribute__((noreturn, noinline)) static void help(long cgroup)
{
	sys(SYS_close, cgroup);
	outcome_detail = "";
	outcome.helper = sys(SYS_getpid);
	enter_container();
}

// enter_unified enters the cgroup of version 2. By a write that would cost a grace period; a new process can be born
// there without, but only while the process is where it may move others. So a helper is born there that does the rest.
static void enter_unified(void)
{
	struct clone_args how = { .flags = CLONE_INTO_CGROUP | CLONE_PARENT | CLONE_VM | CLONE_VFORK };
	long pid, fd;

	outcome_detail = at(request->unified);
	fd = sys(SYS_openat, AT_FDCWD, outcome_detail, O_PATH | O_DIRECTORY | O_CLOEXEC);
	must(STEP_CGROUP, fd);
	how.cgroup = fd;
	pid = sys(SYS_clone3, &how, sizeof(how));
	if (pid == 0)
		help(fd);
	if (pid > 0)
		leave(0); // the helper has reported
	must(STEP_CGROUP, write_file(fd, "cgroup.procs", "0"));
	sys(SYS_close, fd);
	outcome_detail = "";
}

__attribute__((noreturn)) static void run(void)
{
	uint64_t none = 0;

	sys(SYS_prctl, PR_SET_NAME, STAGE_NAME); // the kernel took it from the path, a number
	sys(SYS_close, EXE_FD);
	sys(SYS_fcntl, SOCKET_FD, F_SETFD, FD_CLOEXEC);
	sys(SYS_rt_sigprocmask, SIG_SETMASK, &none, 0, sizeof(none));
	receive();
	args = list(request->args, request->arg_count);
	env = list(request->env, request->env_count);
	if (request->unified != 0)
		enter_unified();
	enter_container();
}

// gantry_stage_entry gets the stack that the kernel made: the number of arguments, and then they.
void gantry_stage_entry(long *stack)
{
	const char *name = (const char *)stack[1];

	if (stack[0] == 1 && begins(name, STAGE_NAME) && length(name) == sizeof(STAGE_NAME) - 1)
		run();
}
