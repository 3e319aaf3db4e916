// Command puppet is a guest that does what its arguments say, in order; the tests of
// the runtime pull its strings.
//
//	out TEXT      prints TEXT and a line break
//	err TEXT      prints TEXT and a line break to standard error
//	env NAME      prints a variable's value
//	args          prints all arguments, quoted, argv[0] first
//	count         prints how often this instance counted before, and counts
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
			for range 1000 {
				go func() {
					for {
						runtime.Gosched()
					}
				}()
			}
			select {}
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

func say(to *os.File, line string) {
	if _, err := to.WriteString(line + "\n"); err != nil {
		os.Exit(3)
	}
}
