// Command documents is a guest for benchmarks: it encodes, decodes and sorts, as
// services do.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"sort"
	"strings"
)

type user struct {
	Name       string            `json:"name"`
	ID         int               `json:"id"`
	Tags       []string          `json:"tags"`
	Attributes map[string]string `json:"attributes"`
}

func main() {
	sum := 0
	for turn := range 60 {
		users := make([]user, 50)
		for i := range users {
			users[i] = user{strings.Repeat("x", i), turn * i, []string{"a", "b"}, map[string]string{"k": fmt.Sprint(i)}}
		}
		text, err := json.Marshal(users)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		var back []user
		if err := json.Unmarshal(text, &back); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		sort.Slice(back, func(i, j int) bool { return back[i].Name > back[j].Name })
		sum += len(text) + back[0].ID
	}
	fmt.Println(sum)
}
