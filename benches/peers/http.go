// The HTTP server in Go: what benches/src/http.rs says, one goroutine per connection.
// It says "listening on HOST:PORT" and ends when its stdin closes.
package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
)

const answer = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 12\r\n\r\nHello, world"
const end = "\r\n\r\n"

var answers = bytes.Repeat([]byte(answer), 1024)

func main() {
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println("listening on", listener.Addr())
	go func() {
		io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	for {
		conn, err := listener.Accept()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		go serve(conn)
	}
}

func serve(conn net.Conn) {
	defer conn.Close()
	buf := make([]byte, 4096)
	ended := 0
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return
		}
		requests := 0
		for _, char := range buf[:n] {
			switch {
			case (char == '\r' || char == '\n') && char == end[ended]:
				ended++
			case char == '\r':
				ended = 1
			default:
				ended = 0
			}
			if ended == len(end) {
				ended = 0
				requests++
			}
		}
		if requests == 0 {
			continue
		}
		if _, err := conn.Write(answers[:requests*len(answer)]); err != nil {
			return
		}
	}
}
