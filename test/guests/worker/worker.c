// worker does what its arguments say, one after another: a command for tests of
// pods.
//
//   print TEXT       a line to standard output
//   complain TEXT    a line to standard error
//   env              the environment, a line for each variable
//   args             its own arguments, a line for each
//   lines N          N numbered lines
//   cat PATH         a file's content
//   write PATH TEXT  a file
//   sleep SECONDS
//   exit CODE
//   allocate         memory without end; a trap when there is none
//   trap             ends by a trap
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

extern char **environ;

static void fail(const char *what, const char *path) {
  fprintf(stderr, "%s %s: %s\n", what, path, strerror(errno));
  exit(2);
}

static void cat(const char *path) {
  char block[4096];
  FILE *f = fopen(path, "r");
  if (!f) fail("open", path);
  for (size_t n; (n = fread(block, 1, sizeof block, f)) > 0;) fwrite(block, 1, n, stdout);
  fclose(f);
}

static void put(const char *path, const char *text) {
  FILE *f = fopen(path, "w");
  if (!f) fail("create", path);
  if (fputs(text, f) < 0 || fclose(f) != 0) fail("write", path);
}

int main(int argc, char **argv) {
  // A line is seen when it is written, not when a buffer is full.
  setvbuf(stdout, NULL, _IOLBF, 0);
  for (int i = 1; i < argc; i++) {
    const char *verb = argv[i];
    const char *arg = i + 1 < argc ? argv[i + 1] : "";
    if (!strcmp(verb, "env")) {
      for (char **e = environ; *e; e++) puts(*e);
    } else if (!strcmp(verb, "args")) {
      for (int j = 0; j < argc; j++) puts(argv[j]);
    } else if (!strcmp(verb, "allocate")) {
      // The compiler leaves out what nobody looks at.
      for (void *volatile block = argv; block;) block = malloc(1 << 20);
      __builtin_trap();
    } else if (!strcmp(verb, "trap")) {
      __builtin_trap();
    } else if (!strcmp(verb, "print")) {
      puts(arg), i++;
    } else if (!strcmp(verb, "complain")) {
      fprintf(stderr, "%s\n", arg), i++;
    } else if (!strcmp(verb, "lines")) {
      for (long n = 0; n < atol(arg); n++) printf("line %ld\n", n);
      i++;
    } else if (!strcmp(verb, "cat")) {
      cat(arg), i++;
    } else if (!strcmp(verb, "write")) {
      put(arg, i + 2 < argc ? argv[i + 2] : ""), i += 2;
    } else if (!strcmp(verb, "sleep")) {
      fflush(stdout), sleep(atoi(arg)), i++;
    } else if (!strcmp(verb, "exit")) {
      exit(atoi(arg));
    } else {
      fprintf(stderr, "unknown command %s\n", verb);
      return 64;
    }
  }
  return 0;
}
