// Command compile compiles Knative's test images, or the programs in test/guests,
// to modules and prints their paths.
//
//	go run ./test/guests/compile networking/runtime serving/helloworld puppet
package main

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/wisp-serving/wisp/test/guests"
)

func main() {
	for _, name := range os.Args[1:] {
		build := guests.Program
		if strings.Contains(name, "/") {
			build = guests.Knative
		}
		path, err := build(context.Background(), name)
		if err != nil {
			fmt.Fprintln(os.Stderr, "compile:", err)
			os.Exit(1)
		}
		fmt.Println(path)
	}
}
