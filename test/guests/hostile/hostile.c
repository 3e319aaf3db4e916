// hostile is a CGI program that does what a good one doesn't; the tests of the
// request path send it requests. Without a request it prints $TRACEPARENT.
//
//   /hello      answers well
//   /env/NAME   a variable
//   /raw        the body is what it prints, headers and all
//   /early/N    begins to answer, then reads N bytes of the body and says how many
//   /deaf       answers without reading the body
//   /wait       reads the body to its end
//   /never      neither reads nor answers, for ever
//   /late       begins to answer, sleeps for ever
//   /flood      answers without an end
//   /headers/N  answers with N headers
//   /silent     exits without a word
//   /trap       traps in the middle of its answer
//   /exit/N     exits in the middle of its answer
//   /busy/N     counts to N millions, then answers

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static char buffer[1 << 16];

static void sleep_for_ever(void) {
	struct timespec hour = {3600, 0};
	for (;;) nanosleep(&hour, NULL);
}

static void begin(const char *text) {
	printf("Content-Type: text/plain\n\n%s", text);
	fflush(stdout);
}

static long long read_body(long long most) {
	long long total = 0;
	while (total < most) {
		long long left = most - total;
		ssize_t n = read(0, buffer, left < (long long)sizeof buffer ? left : (long long)sizeof buffer);
		if (n <= 0) break;
		total += n;
	}
	return total;
}

static int is(const char *path, const char *name) {
	size_t n = strlen(name);
	return strncmp(path, name, n) == 0 && (path[n] == 0 || path[n] == '/');
}

int main(void) {
	const char *path = getenv("PATH_INFO");
	if (!path) {
		const char *trace = getenv("TRACEPARENT");
		puts(trace ? trace : "");
		return 0;
	}
	const char *slash = strrchr(path, '/');
	long long number = atoll(slash + 1);
	if (is(path, "/hello")) {
		begin("hello\n");
	} else if (is(path, "/env")) {
		const char *value = getenv(slash + 1);
		begin(value ? value : "");
	} else if (is(path, "/raw")) {
		ssize_t n;
		while ((n = read(0, buffer, sizeof buffer)) > 0) write(1, buffer, n);
	} else if (is(path, "/early")) {
		begin("early\n");
		printf("%lld\n", read_body(number));
	} else if (is(path, "/busy")) {
		for (volatile long long i = 0; i < number * 1000000; i++);
		begin("busy\n");
	} else if (is(path, "/deaf")) {
		begin("deaf\n");
	} else if (is(path, "/wait")) {
		long long n = read_body(1LL << 62);
		begin("");
		printf("%lld\n", n);
	} else if (is(path, "/never")) {
		sleep_for_ever();
	} else if (is(path, "/late")) {
		begin("begun\n");
		sleep_for_ever();
	} else if (is(path, "/flood")) {
		begin("");
		memset(buffer, 'x', sizeof buffer);
		for (;;) write(1, buffer, sizeof buffer);
	} else if (is(path, "/headers")) {
		printf("Status: 200\n");
		for (long long i = 0; i < number; i++) printf("X-%lld: y\n", i);
		printf("\n");
	} else if (is(path, "/silent")) {
		return 0;
	} else if (is(path, "/trap")) {
		begin("begun\n");
		__builtin_trap();
	} else if (is(path, "/exit")) {
		begin("begun\n");
		return number;
	}
	return 0;
}
