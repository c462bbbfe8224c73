// The sleepers in Go; benches/src/sleepers.rs says what is measured, and has the same numbers and the same output.
package main

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"
)

func mix(seed uint64) uint64 {
	z := (seed + 1) * 0x9e3779b97f4a7c15
	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9
	z = (z ^ (z >> 27)) * 0x94d049bb133111eb
	return z ^ (z >> 31)
}

func cpu() int64 {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		panic(err)
	}
	return usage.Utime.Nano() + usage.Stime.Nano()
}

func number(text string) uint64 {
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	return n
}

func main() {
	count, longest, singles := number(os.Args[1]), number(os.Args[2]), number(os.Args[3])

	late := make([]int64, count)
	var wait sync.WaitGroup
	start, used := time.Now(), cpu()
	for index := range late {
		wait.Add(1)
		go func() {
			length := time.Duration(mix(uint64(index)) % longest)
			begin := time.Now()
			time.Sleep(length)
			late[index] = int64(time.Since(begin) - length)
			wait.Done()
		}()
	}
	wait.Wait()
	used, wall := cpu()-used, time.Since(start).Nanoseconds()
	slices.Sort(late)

	over := make([]int64, singles)
	for index := range over {
		length := 100 * time.Microsecond
		begin := time.Now()
		time.Sleep(length)
		over[index] = int64(time.Since(begin) - length)
	}
	slices.Sort(over)

	fmt.Println(at(late, 0.5), at(late, 0.99), late[len(late)-1], used, wall, at(over, 0.5))
}

func at(sorted []int64, share float64) int64 {
	return sorted[int(float64(len(sorted)-1)*share)]
}
