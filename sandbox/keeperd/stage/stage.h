// What stage.c and the Go side of the package agree on. Both sides use this file.

#ifndef GANTRY_STAGE_H
#define GANTRY_STAGE_H

#include <stdint.h>

#define STAGE_NAME "gantry-exec"

// The descriptors that the stage is started with, beside the three streams.
enum { SOCKET_FD = 3, INIT_FD = 4, EXE_FD = 5, FDS = 6 };

enum flag {
	FLAG_TERMINAL = 1,
	FLAG_NO_NEW_PRIVS = 2,
	FLAG_UMASK = 4,
	FLAG_CAPABILITIES = 8,
	FLAG_SECCOMP = 16,
	FLAG_HOME = 32, // add HOME, from the container's passwd file, to the environment
};

// Where something went wrong.
enum step {
	STEP_NONE,
	STEP_REQUEST,
	STEP_PROC,
	STEP_CGROUP, // detail: the file
	STEP_OOM_SCORE,
	STEP_RLIMIT, // arg: the resource
	STEP_DUMPABLE,
	STEP_NAMESPACES,
	STEP_ROOT,
	STEP_FORK,
	STEP_SESSION,
	STEP_KEYRING,
	STEP_KEY_LABEL,
	STEP_TERMINAL,
	STEP_NO_NEW_PRIVS,
	STEP_EXEC_LABEL,
	STEP_SECCOMP,
	STEP_CWD, // detail: the directory
	STEP_CWD_OUTSIDE,
	STEP_BOUNDING,
	STEP_KEEP_CAPS,
	STEP_STREAMS,
	STEP_GROUPS,
	STEP_GID,
	STEP_UID,
	STEP_CAPABILITIES,
	STEP_APPARMOR,
	STEP_NOT_FOUND,
	STEP_STAT,
	STEP_ACCESS,
	STEP_RELATIVE,
	STEP_CLOSE,
	STEP_EXEC, // detail: the path
	STEP_MASTER = 1000, // no error: the frame carries the terminal
};

// What the stage says: once at the end, with the pids of the process and of a helper, 0 for none, which are to be reaped,
// and before that for a terminal. detail bytes follow.
struct frame {
	int32_t step, error, pid, helper, arg;
	uint32_t detail;
};

// What the stage is asked. The offsets are from its beginning and multiples of eight; counted strings follow each other.
struct request {
	uint32_t size, flags, namespaces, umask;
	uint32_t uid, gid, groups, group_count;
	uint64_t bounding, effective, permitted, inheritable, ambient;
	uint32_t rlimits, rlimit_count; // resource, soft, hard
	uint32_t seccomp, seccomp_count, seccomp_flags;
	uint32_t cgroups, cgroup_count; // version 1: the files named tasks
	uint32_t unified; // version 2: the directory; 0: none
	uint32_t args, arg_count, env, env_count;
	uint32_t cwd, keyring, oom_score, label, apparmor; // 0: none
};

#endif
