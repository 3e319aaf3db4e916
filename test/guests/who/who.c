// A CGI program that says who it is: the environment variable WHO.
#include <stdio.h>
#include <stdlib.h>

int main(void) {
	const char *who = getenv("WHO");
	printf("Content-Type: text/plain\n\n%s", who ? who : "nobody");
	return 0;
}
