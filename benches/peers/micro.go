// The parts of a scheduler in Go; benches/src/micro.rs says what is measured, and has the same rows and numbers.
package main

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

const (
	spawns   = 10_000
	yielders = 1000
	yields   = 1000
	pairs    = 1000
	messages = 100_000
	depth    = 1000
	sleepers = 1000
	sleeps   = 10_000
	million  = 1_000_000
	long     = 60 * time.Second
)

func main() {
	times, err := strconv.Atoi(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	// As in micro.rs.
	often := times
	if times > 1 {
		often = times * 5
	}
	rows := []struct {
		play  func() time.Duration
		count int
		times int
	}{
		{spawnInside, spawns, times},
		{func() time.Duration { return outside(spawnInside) }, spawns, times},
		{yield, yielders * yields, times},
		{oneshotPairs, pairs, often},
		{channel, messages * 2, times},
		{chainedSpawn, depth, often},
		{func() time.Duration { return storm(func(f func()) { f() }) }, sleepers, often},
		{func() time.Duration { return storm(func(f func()) { outside(func() time.Duration { f(); return 0 }) }) }, sleepers, often},
		{sleepBySleep, sleeps, times},
		{millionSleeps, million, min(times, 3)},
		{clock, sleeps, times},
	}
	for _, row := range rows {
		var played []float64
		for range row.times {
			played = append(played, float64(row.play().Nanoseconds())/float64(row.count))
		}
		slices.Sort(played)
		fmt.Print(played[len(played)/2], " ")
	}
	fmt.Println()
}

// From a thread with nothing else on it, which is as far outside as it gets.
func outside(f func() time.Duration) time.Duration {
	told := make(chan time.Duration)
	go func() {
		runtime.LockOSThread()
		told <- f()
	}()
	return <-told
}

func spawnInside() time.Duration {
	var wait sync.WaitGroup
	start := time.Now()
	wait.Add(spawns)
	for range spawns {
		go wait.Done()
	}
	wait.Wait()
	return time.Since(start)
}

func yield() time.Duration {
	var wait sync.WaitGroup
	start := time.Now()
	wait.Add(yielders)
	for range yielders {
		go func() {
			for range yields {
				runtime.Gosched()
			}
			wait.Done()
		}()
	}
	wait.Wait()
	return time.Since(start)
}

func oneshotPairs() time.Duration {
	var wait sync.WaitGroup
	start := time.Now()
	wait.Add(pairs)
	for range pairs {
		go func() {
			ask, answer := make(chan struct{}, 1), make(chan struct{}, 1)
			go func() { answer <- <-ask }()
			ask <- struct{}{}
			<-answer
			wait.Done()
		}()
	}
	wait.Wait()
	return time.Since(start)
}

func channel() time.Duration {
	there, back := make(chan int, 1), make(chan int, 1)
	go func() {
		for message := range there {
			back <- message
		}
	}()
	start := time.Now()
	for message := range messages {
		there <- message
		<-back
	}
	elapsed := time.Since(start)
	close(there)
	return elapsed
}

func chainedSpawn() time.Duration {
	end := make(chan struct{})
	var next func(left int)
	next = func(left int) {
		if left == 1 {
			close(end)
			return
		}
		go next(left - 1)
	}
	start := time.Now()
	go next(depth)
	<-end
	return time.Since(start)
}

func storm(from func(func())) time.Duration {
	wakers := make([]chan struct{}, sleepers)
	var left atomic.Int64
	left.Store(sleepers)
	end := make(chan time.Time)
	for index := range wakers {
		wakers[index] = make(chan struct{}, 1)
		go func() {
			<-wakers[index]
			if left.Add(-1) == 0 {
				end <- time.Now()
			}
		}()
	}
	// Long enough for all to wait: nothing says so.
	time.Sleep(2 * time.Millisecond)
	var start time.Time
	from(func() {
		start = time.Now()
		for _, waker := range wakers {
			waker <- struct{}{}
		}
	})
	return (<-end).Sub(start)
}

func sleepBySleep() time.Duration {
	start := time.Now()
	for range sleeps {
		time.AfterFunc(long, func() {}).Stop()
	}
	return time.Since(start)
}

func millionSleeps() time.Duration {
	timers := make([]*time.Timer, million)
	start := time.Now()
	for index := range timers {
		timers[index] = time.AfterFunc(long, func() {})
	}
	for _, timer := range timers {
		timer.Stop()
	}
	return time.Since(start)
}

func clock() time.Duration {
	start := time.Now()
	var last time.Time
	for range sleeps {
		last = time.Now()
	}
	runtime.KeepAlive(last)
	return time.Since(start)
}
