// sort prints its arguments, read as integers, in ascending order on one line:
//
//	$ sort 10 9 -1
//	-1 9 10
//
// A number is what strtoll reads in base 10: optional blanks, an optional sign
// and digits, at least -2^63 and at most 2^63-1. Anything else, a number out of
// that range among it, is named on standard error and the exit status is 1;
// nothing is printed then.

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

static int ascending(const void *a, const void *b) {
	long long x = *(const long long *)a, y = *(const long long *)b;
	return (x > y) - (x < y); // x - y could overflow
}

// parse reads text into *n. It returns what is wrong with text, or NULL.
static const char *parse(const char *text, long long *n) {
	char *end;
	errno = 0;
	*n = strtoll(text, &end, 10);
	if (end == text || *end != '\0')
		return "not an integer";
	if (errno == ERANGE)
		return "doesn't fit in 64 bits";
	return NULL;
}

int main(int argc, char **argv) {
	size_t count = argc > 0 ? (size_t)argc - 1 : 0;
	// calloc(0) may return NULL, which would look like a lack of memory.
	long long *numbers = calloc(count + 1, sizeof *numbers);
	if (numbers == NULL) {
		fprintf(stderr, "sort: no memory for %zu numbers\n", count);
		return 1;
	}
	for (size_t i = 0; i < count; i++) {
		const char *wrong = parse(argv[i + 1], &numbers[i]);
		if (wrong != NULL) {
			fprintf(stderr, "sort: argument %zu: \"%s\" %s\n", i + 1, argv[i + 1], wrong);
			return 1;
		}
	}
	qsort(numbers, count, sizeof *numbers, ascending);
	for (size_t i = 0; i < count; i++)
		printf(i == 0 ? "%lld" : " %lld", numbers[i]);
	putchar('\n');
	// Output is buffered: an error shows here at the latest.
	if (fflush(stdout) != 0) {
		perror("sort: write");
		return 1;
	}
	return 0;
}
