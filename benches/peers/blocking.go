// The echo server in Go, with a handler that keeps its thread when a message begins with BLOCK; benches/src/stall.rs says
// how, and has the same words for it: sleep:MILLISECONDS, lock:MILLISECONDS or spin:STEPS, in the first argument.
// time.Sleep would park the goroutine and leave its thread free, so it sleeps in the system call. Go's only mutex parks, too:
// with lock, no thread of Go's is blocked.
// It says "listening on HOST:PORT" and ends when its stdin closes.
package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

func main() {
	how, text, _ := strings.Cut(os.Args[1], ":")
	much, err := strconv.ParseUint(text, 10, 64)
	check(err)
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	check(err)
	fmt.Println("listening on", listener.Addr())
	go func() {
		io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	for {
		conn, err := listener.Accept()
		check(err)
		go echo(conn, how, much)
	}
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func echo(conn net.Conn, how string, much uint64) {
	defer conn.Close()
	buf := make([]byte, 4096)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return
		}
		if bytes.HasPrefix(buf[:n], []byte("BLOCK")) {
			stall(how, much)
		}
		if _, err := conn.Write(buf[:n]); err != nil {
			return
		}
	}
}

func stall(how string, much uint64) {
	length := time.Duration(much) * time.Millisecond
	switch how {
	case "sleep":
		left := syscall.NsecToTimespec(int64(length))
		for syscall.Nanosleep(&left, &left) == syscall.EINTR {
		}
	case "spin":
		compute(much)
	case "lock":
		var mutex sync.Mutex
		mutex.Lock()
		time.AfterFunc(length, mutex.Unlock)
		mutex.Lock()
	}
}

// What is written here is not optimised away.
var result atomic.Uint64

func compute(steps uint64) {
	x := uint64(88172645463325252)
	for range steps {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
	}
	result.Store(x)
}
