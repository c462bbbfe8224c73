// Deadlines in Go; benches/src/deadlines.rs says what is measured, and has the same numbers and the same output.
package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"syscall"
	"time"
)

const ahead = 30 * time.Second
const message = 64

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func cpu() int64 {
	var usage syscall.Rusage
	check(syscall.Getrusage(syscall.RUSAGE_SELF, &usage))
	return usage.Utime.Nano() + usage.Stime.Nano()
}

func number(text string) int {
	n, err := strconv.Atoi(text)
	check(err)
	return n
}

func pingPong(conn net.Conn, trips int, guarded bool, first bool) {
	var buf [message]byte
	for range trips {
		if first {
			_, err := conn.Write(buf[:])
			check(err)
		}
		if guarded {
			check(conn.SetReadDeadline(time.Now().Add(ahead)))
		}
		_, err := io.ReadFull(conn, buf[:])
		check(err)
		if !first {
			_, err := conn.Write(buf[:])
			check(err)
		}
	}
}

func main() {
	sets, blocks, trips := number(os.Args[1]), number(os.Args[2]), number(os.Args[3])
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	left, err := net.Dial("tcp", listener.Addr().String())
	check(err)
	right, err := listener.Accept()
	check(err)

	var last time.Time
	start := time.Now()
	for range sets {
		last = time.Now()
	}
	clock := float64(last.Sub(start)) / float64(sets)
	start = time.Now()
	for range sets {
		check(left.SetReadDeadline(time.Now().Add(ahead)))
	}
	set := float64(time.Since(start))/float64(sets) - clock

	var differences []float64
	for range blocks {
		var used [2]int64
		for index, guarded := range []bool{false, true} {
			check(left.SetReadDeadline(time.Time{}))
			check(right.SetReadDeadline(time.Time{}))
			before, done := cpu(), make(chan bool)
			go func() {
				pingPong(right, trips, guarded, false)
				done <- true
			}()
			pingPong(left, trips, guarded, true)
			<-done
			used[index] = cpu() - before
		}
		differences = append(differences, float64(used[1]-used[0])/float64(2*trips))
	}
	slices.Sort(differences)
	fmt.Println(clock, set, differences[len(differences)/2])
}
