// workloads are what the cost of metering is measured with. Each export takes how
// much there is to do, and returns a checksum.

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT(name) __attribute__((export_name(#name))) uint32_t name(uint32_t n)

// loop is as tight as loops get, with a dependency from turn to turn.
EXPORT(loop) {
	uint32_t x = 1;
	for (uint32_t i = 0; i < n; i++)
		x = (x << 1) ^ (x >> 3) ^ i;
	return x;
}

// matrix is nested loops with memory traffic.
static double a[64][64], b[64][64], c[64][64];

EXPORT(matrix) {
	for (int i = 0; i < 64; i++)
		for (int j = 0; j < 64; j++)
			a[i][j] = i + j, b[i][j] = i - j;
	for (uint32_t turn = 0; turn < n; turn++)
		for (int i = 0; i < 64; i++)
			for (int j = 0; j < 64; j++) {
				double sum = 0;
				for (int k = 0; k < 64; k++)
					sum += a[i][k] * b[k][j];
				c[i][j] = sum;
			}
	return (uint32_t)c[7][9];
}

// sieve strides through memory.
static uint8_t composite[1 << 20];

EXPORT(sieve) {
	uint32_t primes = 0;
	for (uint32_t turn = 0; turn < n; turn++) {
		memset(composite, 0, sizeof composite);
		for (uint32_t i = 2; i < sizeof composite; i++)
			if (!composite[i]) {
				primes++;
				for (uint32_t j = i * 2; j < sizeof composite; j += i)
					composite[j] = 1;
			}
	}
	return primes;
}

static __attribute__((noinline)) uint32_t fibonacci(uint32_t n) { return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2); }

EXPORT(fib) { return fibonacci(n); }

// mutual is recursion through a table.
typedef uint32_t (*step)(uint32_t);
static uint32_t odd(uint32_t), even(uint32_t);
static volatile step steps[2] = {even, odd};
static uint32_t even(uint32_t n) { return n == 0 ? 1 : steps[1](n - 1) + 1; }
static uint32_t odd(uint32_t n) { return n == 0 ? 0 : steps[0](n - 1) ^ n; }

EXPORT(mutual) {
	uint32_t sum = 0;
	for (uint32_t i = 0; i < n; i++)
		sum += even(1000);
	return sum;
}

static int ascending(const void *x, const void *y) {
	int64_t p = *(const int64_t *)x, q = *(const int64_t *)y;
	return (p > q) - (p < q);
}

static int64_t numbers[10000];

EXPORT(sort) {
	uint32_t x = 1;
	for (uint32_t turn = 0; turn < n; turn++) {
		for (int i = 0; i < 10000; i++) {
			x = x * 1664525 + 1013904223;
			numbers[i] = x;
		}
		qsort(numbers, 10000, sizeof *numbers, ascending);
	}
	return (uint32_t)numbers[5000];
}

// A parser of JSON that counts and sums what it finds.
struct parser {
	const char *at, *end;
	uint32_t sum;
};

static void blank(struct parser *p) {
	while (p->at < p->end && (*p->at == ' ' || *p->at == '\n' || *p->at == '\t' || *p->at == '\r'))
		p->at++;
}

static void string(struct parser *p) {
	for (p->at++; p->at < p->end && *p->at != '"'; p->at++) {
		if (*p->at == '\\')
			p->at++;
		p->sum = p->sum * 31 + (uint8_t)*p->at;
	}
	p->at++;
}

static void number(struct parser *p) {
	double value = 0, scale = 1;
	int negative = *p->at == '-';
	p->at += negative;
	for (; p->at < p->end && *p->at >= '0' && *p->at <= '9'; p->at++)
		value = value * 10 + (*p->at - '0');
	if (p->at < p->end && *p->at == '.')
		for (p->at++; p->at < p->end && *p->at >= '0' && *p->at <= '9'; p->at++)
			value += (*p->at - '0') * (scale /= 10);
	p->sum += (uint32_t)(int64_t)(negative ? -value : value);
}

static void value(struct parser *p) {
	blank(p);
	if (p->at >= p->end)
		return;
	switch (*p->at) {
	case '{':
	case '[':
		for (p->at++;;) {
			blank(p);
			if (p->at >= p->end || *p->at == '}' || *p->at == ']')
				break;
			if (*p->at == ',' || *p->at == ':')
				p->at++;
			value(p);
		}
		p->at++;
		break;
	case '"':
		string(p);
		break;
	case 't':
	case 'n':
		p->at += 4, p->sum += 2;
		break;
	case 'f':
		p->at += 5;
		break;
	default:
		number(p);
	}
}

static const char document[] =
	"{\"name\": \"request\", \"id\": 1234567, \"price\": -12.75, \"tags\": [\"a\", \"bc\", \"d\\\"ef\", \"\"],"
	"\"nested\": {\"list\": [1, 2, 3, [4, 5, {\"x\": null, \"y\": true, \"z\": false}]], \"text\": \"a longer text, as they come in documents\"},"
	"\"users\": [{\"id\": 1, \"mail\": \"first@example.com\"}, {\"id\": 2, \"mail\": \"second@example.com\"}]}";

EXPORT(json) {
	struct parser p = {0};
	for (uint32_t turn = 0; turn < n; turn++) {
		p.at = document, p.end = document + sizeof document - 1;
		value(&p);
	}
	return p.sum;
}

// interpret runs a small program on a stack machine: a loop around a switch.
EXPORT(interpret) {
	static const uint8_t program[] = {0, 1, 2, 3, 4, 5, 1, 0, 2, 6, 3, 7, 1, 8, 0, 2, 9};
	uint32_t stack[64], sp = 0, acc = 1, turn = 0;
	for (uint32_t pc = 0;; pc++) {
		switch (program[pc]) {
		case 0: stack[sp++ & 63] = acc; break;
		case 1: acc += 7; break;
		case 2: acc ^= stack[--sp & 63]; break;
		case 3: acc = acc << 3 | acc >> 29; break;
		case 4: acc *= 5; break;
		case 5: acc -= sp; break;
		case 6: stack[sp & 63] = acc; break;
		case 7: acc = acc > 1000 ? acc - 1000 : acc + 3; break;
		case 8: acc = ~acc; break;
		case 9:
			if (++turn >= n)
				return acc;
			pc = (uint32_t)-1;
		}
	}
}

int main(void) { return 0; }
