// A CGI program: headers, an empty line, the body. See RFC 3875.
#include <stdio.h>
#include <stdlib.h>

int main(void) {
	const char *name = getenv("QUERY_STRING");
	printf("Content-Type: text/plain\n\nhello %s\n", name && *name ? name : "world");
	return 0;
}
