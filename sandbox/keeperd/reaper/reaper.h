// How a process ended, as the reaper and the keeper note it. See reaper.go.

#include <stdint.h>
#include <sys/types.h>

// A file of this many ends at most, each at the place of its pid.
#define END_SLOTS 65536

struct end {
	uint32_t pid;
	uint32_t status; // as wait(2) tells it
	uint64_t start;  // as in proc_pid_stat(5)
};

// reaper_pid is the pid of the reaper that was forked off, or 0.
pid_t reaper_pid(void);
