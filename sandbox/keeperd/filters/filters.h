#ifndef GANTRY_FILTERS_H
#define GANTRY_FILTERS_H

// The cache is a memfd that the keeper has open as FILTERS_FD:
//
//	uint64 magic, uint32 count, uint32 unused
//	FILTERS_MAX entries of uint32 offset, length of the calls, length of the program, unused
//	calls and program of each entry, one after the other
#define FILTERS_FD 200
#define FILTERS_NAME "gantry-seccomp-filters"
#define FILTERS_MAGIC 0x3172746c69667447ULL
#define FILTERS_MAX 64
#define FILTERS_SIZE (4 << 20)

void filters_record(int fd);

#endif
