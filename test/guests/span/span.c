// span sleeps for as many milliseconds as its argument says, and prints when it
// began and when it ended, in nanoseconds since the epoch. From many answers a
// test can tell how many ran at one time.

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static long long now(void) {
	struct timespec t;
	clock_gettime(CLOCK_REALTIME, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

int main(int argc, char **argv) {
	long ms = argc > 1 ? strtol(argv[1], NULL, 10) : 0;
	struct timespec pause = {ms / 1000, ms % 1000 * 1000000};
	long long began = now();
	nanosleep(&pause, NULL);
	printf("%lld %lld\n", began, now());
	return 0;
}
