#ifndef GANTRY_MARKS_H
#define GANTRY_MARKS_H

#include <stdint.h>

// The area is a memfd that the keeper has open as MARKS_FD: MARKS_SLOTS of struct marks_slot. An init has the slot of its
// pid modulo their number; one that another init has taken meanwhile has another pid in it.
#define MARKS_FD 201
#define MARKS_NAME "gantry-start-marks"
#define MARKS_SLOTS 1024
#define MARKS_COUNT 6
#define MARKS_SIZE (MARKS_SLOTS * sizeof(struct marks_slot))

struct marks_slot {
	uint32_t pid, unused;
	int64_t at[MARKS_COUNT]; // CLOCK_MONOTONIC in nanoseconds, 0 for none
};

void marks_begin(uint32_t pid);
void marks_seccomp(void);
void marks_seccomp_export(void);

#endif
