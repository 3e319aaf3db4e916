// Command puppet is a guest that does what its arguments say, in order; the tests of
// the runtime pull its strings.
//
//	out TEXT      prints TEXT and a line break
//	err TEXT      prints TEXT and a line break to standard error
//	env NAME      prints a variable's value
//	args          prints all arguments, quoted, argv[0] first
//	count         prints how often this instance counted before, and counts
//	cat PATH      prints a file, or why it can't
//	append PATH   appends a line to a file, made if need be, or says why it can't
//	fill PATH     writes zeros to a file until that fails, and prints the MiB
//	exit STATUS   exits
//	panic         panics
//	loop          loops for ever
//	spin          loops for ever in a thousand goroutines
//	sleep         sleeps for ever
//	flood         prints for ever
//	floodlog      prints to standard error for ever
package main

import (
	"os"
	"runtime"
	"strconv"
	"time"
)

var counted int

func main() {
	for i := 1; i < len(os.Args); i++ {
		next := func() string {
			if i++; i < len(os.Args) {
				return os.Args[i]
			}
			return ""
		}
		switch verb := os.Args[i]; verb {
		case "out":
			say(os.Stdout, next())
		case "err":
			say(os.Stderr, next())
		case "env":
			say(os.Stdout, os.Getenv(next()))
		case "args":
			for _, arg := range os.Args {
				say(os.Stdout, strconv.Quote(arg))
			}
		case "count":
			say(os.Stdout, strconv.Itoa(counted))
			counted++
		case "cat":
			cat(next())
		case "append":
			add(next())
		case "fill":
			fill(next())
		case "exit":
			status, _ := strconv.Atoi(next())
			os.Exit(status)
		case "panic":
			panic("as told")
		case "loop":
			for {
				counted++
			}
		case "spin":
			spin()
		case "sleep":
			time.Sleep(1<<63 - 1)
		case "flood":
			for {
				say(os.Stdout, "and on")
			}
		case "floodlog":
			for {
				say(os.Stderr, "and on")
			}
		default:
			say(os.Stderr, "puppet: no such verb: "+verb)
			os.Exit(2)
		}
	}
}

func spin() {
	for range 1000 {
		go func() {
			for {
				runtime.Gosched()
			}
		}()
	}
	select {}
}

func cat(name string) {
	content, err := os.ReadFile(name)
	if err != nil {
		say(os.Stdout, err.Error())
		return
	}
	_, _ = os.Stdout.Write(content)
}

func add(name string) {
	file, err := os.OpenFile(name, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err == nil {
		_, err = file.WriteString("line\n")
	}
	if err != nil {
		say(os.Stdout, err.Error())
	}
}

func fill(name string) {
	file, err := os.Create(name)
	if err != nil {
		say(os.Stdout, err.Error())
		return
	}
	zeros := make([]byte, 1<<20)
	written := 0
	for err == nil {
		_, err = file.Write(zeros)
		written++
	}
	say(os.Stdout, strconv.Itoa(written-1))
}

func say(to *os.File, line string) {
	if _, err := to.WriteString(line + "\n"); err != nil {
		os.Exit(3)
	}
}
