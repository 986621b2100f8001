// Gives the first thread that the Go runtime makes, which is sysmon, a timer slack. See sysmon.go.

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/prctl.h>

// In nanoseconds. Goroutines that wait for a processor that a system call holds wait twice as long at most. With more than
// this there are fewer switches still, but a start costs no less; with 10 ms many starts at a time take longer.
#define SLACK 1000000UL

static void *(*sysmon)(void *);
static __thread bool is_sysmon;

static void *start_sysmon(void *arg)
{
	is_sysmon = true;
	prctl(PR_SET_TIMERSLACK, SLACK, 0, 0, 0);
	return sysmon(arg);
}

int __real_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*start)(void *), void *arg);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*start)(void *), void *arg)
{
	int err;

	// runtime.main makes sysmon before it lets any other thread be made.
	if (sysmon == NULL) {
		sysmon = start;
		return __real_pthread_create(thread, attr, start_sysmon, arg);
	}
	if (!is_sysmon)
		return __real_pthread_create(thread, attr, start, arg);
	// A thread inherits the slack of the one that makes it, and so would the containers that it forks.
	prctl(PR_SET_TIMERSLACK, 0UL, 0, 0, 0); // back to the one that the program was started with
	err = __real_pthread_create(thread, attr, start, arg);
	prctl(PR_SET_TIMERSLACK, SLACK, 0, 0, 0);
	return err;
}
