// PID 1 of a PID namespace that containers share. See podinit.go.
//
// The constructor runs before the Go runtime and never returns when the marker is set. The process was cloned into new
// PID and mount namespaces, or clones itself into such, after it has entered a user namespace: only a process of one
// thread can do that. For the same reason a process that new namespaces are made with is here too.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define REPORT_FD 3
#define USERNS_FD 5
#define ID 65535
#define LAUNCH_FD 3
#define LAUNCH_FAILED 125

static void fail(const char *what)
{
	char text[200];
	int n = snprintf(text, sizeof(text), "%s: %s", what, strerror(errno));

	if (write(REPORT_FD, text, n) < 0)
		_exit(2);
	_exit(1);
}

static void on_term(int signal)
{
	(void)signal;
	_exit(0);
}

// detach leaves an empty read-only tmpfs as the whole file system.
static void detach(void)
{
	if (mount(NULL, "/", NULL, MS_SLAVE | MS_REC, NULL) < 0)
		fail("make mounts slave");
	if (mount("tmpfs", "/proc", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "size=4k,mode=555") < 0)
		fail("mount tmpfs");
	if (chdir("/proc") < 0)
		fail("enter tmpfs");
	if (syscall(SYS_pivot_root, ".", ".") < 0)
		fail("pivot_root");
	if (umount2(".", MNT_DETACH) < 0)
		fail("unmount old root");
	if (chdir("/") < 0)
		fail("enter root");
	if (mount(NULL, "/", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) < 0)
		fail("make root read-only");
}

// disarm gives up every right.
static void disarm(void)
{
	struct __user_cap_header_struct header = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct none[2];
	int cap;

	for (cap = 0; prctl(PR_CAPBSET_READ, cap, 0, 0, 0) >= 0; cap++)
		if (prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) < 0 && errno != EPERM)
			fail("drop bounding set");
	// EINVAL: a user namespace too small to have the id. Its root without capabilities is nobody special either.
	if (setgroups(0, NULL) < 0 || (setresgid(ID, ID, ID) < 0 && errno != EINVAL) ||
	    (setresuid(ID, ID, ID) < 0 && errno != EINVAL))
		fail("change user");
	memset(none, 0, sizeof(none));
	if (syscall(SYS_capset, &header, none) < 0)
		fail("drop capabilities");
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		fail("set no_new_privs");
	if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0)
		fail("set not dumpable");
}

static void close_from(unsigned int first)
{
	int fd;

	if (syscall(SYS_close_range, first, ~0U, 0) == 0)
		return;
	for (fd = first; fd < 1024; fd++)
		close(fd);
}

// enter_userns moves to the user namespace of USERNS_FD and returns in a new process, another child of the parent, in new
// PID and mount namespaces which that owns. The pid of the new process is reported as ten digits.
static void enter_userns(void)
{
	int gate[2];
	char byte;
	pid_t pid;

	if (setns(USERNS_FD, CLONE_NEWUSER) < 0)
		fail("enter user namespace");
	if (setgroups(0, NULL) < 0 || setresgid(0, 0, 0) < 0 || setresuid(0, 0, 0) < 0)
		fail("become root of the user namespace");
	if (unshare(CLONE_NEWPID | CLONE_NEWNS) < 0)
		fail("make namespaces");
	if (pipe(gate) < 0)
		fail("make pipe");
	pid = syscall(SYS_clone, CLONE_PARENT | SIGCHLD, NULL, NULL, NULL, 0);
	if (pid < 0)
		fail("fork");
	if (pid > 0) {
		dprintf(REPORT_FD, "%010d", pid);
		_exit(0); // which opens the gate
	}
	close(gate[1]);
	if (read(gate[0], &byte, 1) < 0)
		fail("wait");
	close(gate[0]);
	setsid();
}

static void run(void)
{
	struct sigaction act;
	sigset_t all;

	memset(&act, 0, sizeof(act));
	act.sa_handler = on_term;
	if (sigaction(SIGTERM, &act, NULL) < 0 || sigaction(SIGINT, &act, NULL) < 0)
		fail("set signal handler");
	sigemptyset(&all);
	sigprocmask(SIG_SETMASK, &all, NULL);
	prctl(PR_SET_NAME, "pause", 0, 0, 0);
	if (getenv("_GANTRY_POD_INIT_USERNS") != NULL)
		enter_userns();
	if (getenv("_GANTRY_POD_INIT_NETNS") != NULL &&
	    setns(atoi(getenv("_GANTRY_POD_INIT_NETNS")), CLONE_NEWNET) < 0)
		fail("enter network namespace");
	detach();
	close_from(4);
	disarm();
	if (write(REPORT_FD, "ready", 5) != 5)
		_exit(1);
	close_from(0);

	// SIGCHLD is waited for without a handler: blocked, it stays pending, so none between the two calls is lost.
	sigemptyset(&all);
	sigaddset(&all, SIGCHLD);
	sigprocmask(SIG_BLOCK, &all, NULL);
	for (;;) {
		while (waitpid(-1, NULL, WNOHANG) > 0)
			;
		sigwaitinfo(&all, NULL);
	}
}

// ignore_nothing gives every ignored signal its default action. What the keeper was started with ignored (nohup ignores
// SIGHUP, glibc's posix_spawn the signals of its own) would stay so across execve, and containers would begin with it.
// The system call and not sigaction(3), which keeps its hands off glibc's signals. The first word of the kernel's
// structure is the handler.
static void ignore_nothing(void)
{
	unsigned long action[16];
	int signal;

	for (signal = 1; signal <= 64; signal++) {
		memset(action, 0, sizeof(action));
		if (syscall(SYS_rt_sigaction, signal, NULL, action, 8) < 0 || (void (*)(int))action[0] != SIG_IGN)
			continue;
		memset(action, 0, sizeof(action));
		syscall(SYS_rt_sigaction, signal, action, NULL, 8);
	}
}

// launch executes the program argv[0] when a byte comes by descriptor 3, and ends when that is closed without one. The
// program has SIGXFSZ ignored: it is made to give up by a limit of file sizes, and then gets errors instead of being killed.
static void launch(const char *how, char **argv)
{
	char byte;

	if (read(LAUNCH_FD, &byte, 1) != 1)
		_exit(LAUNCH_FAILED);
	close(LAUNCH_FD);
	// Now it is in the cgroup that is to be the root of the namespace.
	if (strcmp(how, "cgroupns") == 0 && unshare(CLONE_NEWCGROUP) < 0)
		_exit(LAUNCH_FAILED);
	signal(SIGXFSZ, SIG_IGN);
	unsetenv("_GANTRY_LAUNCH");
	execv(argv[0], argv);
	_exit(LAUNCH_FAILED);
}

__attribute__((constructor)) static void pod_init(int argc, char **argv)
{
	char byte;

	(void)argc;
	ignore_nothing();
	if (getenv("_GANTRY_LAUNCH") != NULL)
		launch(getenv("_GANTRY_LAUNCH"), argv);

	if (getenv("_GANTRY_POD_INIT") != NULL)
		run();
	// What was just made is held as long as the standard input is open.
	if (getenv("_GANTRY_HOLD") != NULL) {
		while (read(0, &byte, 1) > 0)
			;
		_exit(0);
	}
}
